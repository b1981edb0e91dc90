import pytest

from provisioner.contracts.rate_limit import RateLimiter


def test_reserve_without_limit():
    assert RateLimiter(None).reserve(10**12) == 0


def test_reserve_accumulates():
    now = [100.0]
    rate_limiter = RateLimiter(1000, lambda: now[0])
    assert rate_limiter.reserve(500) == 0.5
    assert rate_limiter.reserve(500) == 1.0
    now[0] += 0.75
    assert rate_limiter.reserve(0) == 0.25


def test_reserve_after_idle_time():
    now = [100.0]
    rate_limiter = RateLimiter(1000, lambda: now[0])
    rate_limiter.reserve(100)
    now[0] += 3600
    assert rate_limiter.reserve(1000) == 1.0


def test_acquire_stopped_by_check():
    class EnoughError(Exception):
        pass

    def check():
        raise EnoughError

    with pytest.raises(EnoughError):
        RateLimiter(1).acquire(3600, check)
