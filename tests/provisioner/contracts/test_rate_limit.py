import pytest

from provisioner.contracts.rate_limit import RateLimiter


def test_without_a_rate_nothing_waits():
    assert RateLimiter(None).reserve(10**12) == 0


def test_bytes_of_all_transfers_are_paid_for_one_after_the_other():
    now = [100.0]
    rate_limiter = RateLimiter(1000, lambda: now[0])
    assert rate_limiter.reserve(500) == 0.5
    assert rate_limiter.reserve(500) == 1.0
    now[0] += 0.75
    assert rate_limiter.reserve(0) == 0.25


def test_time_in_which_nothing_came_is_not_saved_up():
    now = [100.0]
    rate_limiter = RateLimiter(1000, lambda: now[0])
    rate_limiter.reserve(100)
    now[0] += 3600
    assert rate_limiter.reserve(1000) == 1.0


def test_a_waiting_thread_hears_that_it_is_not_wanted_any_more():
    class EnoughError(Exception):
        pass

    def check():
        raise EnoughError

    with pytest.raises(EnoughError):
        RateLimiter(1).acquire(3600, check)
