"""Tests that failed authentications are counted per address, in limited memory."""

from provisioner.auth import throttle
from provisioner.auth.throttle import FailureCounter


def test_failed_below_limit():
    counter = FailureCounter(max_failures=3)
    assert [counter.failed("a", now) for now in (1, 2, 3)] == [(None, True)] * 3


def test_failed_above_limit():
    counter = FailureCounter(max_failures=3, window=60)
    for now in (0, 10, 20):
        counter.failed("a", now)
    assert counter.failed("a", 30) == (10 + 60 - 30, True)
    assert counter.failed("a", 31)[1] is False  # only the first failure above the limit is logged
    assert counter.failed("a", 200) == (None, True)


def test_failed_counts_per_address():
    counter = FailureCounter(max_failures=1)
    counter.failed("a", 0)
    assert counter.failed("a", 1)[0] is not None
    assert counter.failed("b", 1)[0] is None


def test_failed_table_is_bounded(monkeypatch):
    monkeypatch.setattr(throttle, "MAX_ADDRESSES", 100)
    counter = FailureCounter(max_failures=5)
    for number in range(1000):
        counter.failed(f"address {number}", number)
    assert len(counter) == 100
    for now in range(1000):
        counter.failed("one", now / 1000)
    assert len(counter._failures["one"]) == 6
