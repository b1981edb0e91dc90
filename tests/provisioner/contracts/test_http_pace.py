import pytest

from provisioner.contracts.http_pace import Pace


def test_without_a_rate_nothing_waits():
    assert Pace(None).book(10**12) == 0


def test_bytes_of_all_transfers_are_paid_for_one_after_the_other():
    now = [100.0]
    pace = Pace(1000, lambda: now[0])
    assert pace.book(500) == 0.5
    assert pace.book(500) == 1.0
    now[0] += 0.75
    assert pace.book(0) == 0.25


def test_time_in_which_nothing_came_is_not_saved_up():
    now = [100.0]
    pace = Pace(1000, lambda: now[0])
    pace.book(100)
    now[0] += 3600
    assert pace.book(1000) == 1.0


def test_a_waiting_thread_hears_that_it_is_not_wanted_any_more():
    class EnoughError(Exception):
        pass

    def check():
        raise EnoughError

    with pytest.raises(EnoughError):
        Pace(1).spend(3600, check)
