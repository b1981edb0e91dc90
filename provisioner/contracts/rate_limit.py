"""The rate limit of all transfers of a source together, and the minimum rate of each transfer."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from provisioner.contracts.errors import RemoteUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds between two calls of ``check`` while a thread sleeps.
_CHECK_INTERVAL = 0.1


class RateLimiter:
    """Limits all threads together to ``rate`` bytes per second; None means no limit."""

    def __init__(self, rate: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, size: int) -> float:
        """Account for ``size`` bytes and return the seconds to wait before the next ones."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + size / self._rate
            return self._free_at - now

    def acquire(self, size: int, check: Callable[[], None]) -> None:
        """Account for ``size`` bytes and wait. ``check`` is called meanwhile and may raise to stop."""
        if (wait := self.reserve(size)) <= 0:
            return
        until = self._clock() + wait
        while (left := until - self._clock()) > 0:
            check()
            time.sleep(min(left, _CHECK_INTERVAL))


class RateFloor:
    """Ends a transfer slower than ``rate`` bytes per second over ``window`` seconds.

    Only time spent waiting for the server counts, not a slow disk or our own rate limit.
    """

    def __init__(self, rate: float, window: float, name: str) -> None:
        self._rate = rate
        self._window = window
        self._name = name
        self._seconds = 0.0
        self._bytes = 0

    def waited(self, seconds: float, size: int) -> None:
        """Account for ``size`` bytes received after ``seconds``. Raises RemoteUnavailableError if too slow."""
        self._seconds += seconds
        self._bytes += size
        if self._seconds < self._window:
            return
        if self._bytes < self._rate * self._seconds:
            raise RemoteUnavailableError(
                f"{self._name} stalled: only {self._bytes} bytes arrived in {self._seconds:.3g} s "
                f"(min_rate is {self._rate:g} bytes per second)"
            )
        self._seconds, self._bytes = 0.0, 0
