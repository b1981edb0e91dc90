"""How fast a transfer may be, all of a source together, and how slow, each on its own. Owns the arithmetic."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from provisioner.contracts.errors import RemoteUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

# A sleeping thread looks this often whether it is still wanted.
_GLANCE = 0.1


class RateLimiter:
    """Holds ``rate`` bytes a second over all threads together; None lets everything pass."""

    def __init__(self, rate: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def reserve(self, size: int) -> float:
        """Account for ``size`` bytes; how many seconds to wait before the next ones."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + size / self._rate
            return self._free_at - now

    def acquire(self, size: int, check: Callable[[], None]) -> None:
        """Account for ``size`` bytes and wait. ``check`` is called meanwhile and may raise to end it."""
        if (wait := self.reserve(size)) <= 0:
            return
        until = self._clock() + wait
        while (left := until - self._clock()) > 0:
            check()
            time.sleep(min(left, _GLANCE))


class RateFloor:
    """Ends a transfer that is slower than ``rate`` bytes a second over ``window`` seconds of waiting for the server.

    Only the time that is spent waiting for the server counts: not a slow disk, and not our own rate limit.
    """

    def __init__(self, rate: float, window: float, name: str) -> None:
        self._rate = rate
        self._window = window
        self._name = name
        self._seconds = 0.0
        self._bytes = 0

    def waited(self, seconds: float, size: int) -> None:
        """Account for ``size`` bytes that came after ``seconds``. Raises RemoteUnavailableError."""
        self._seconds += seconds
        self._bytes += size
        if self._seconds < self._window:
            return
        if self._bytes < self._rate * self._seconds:
            raise RemoteUnavailableError(
                f"{self._name} stalled: in {self._seconds:.3g} s only {self._bytes} bytes came "
                f"(min_rate is {self._rate:g} bytes a second)"
            )
        self._seconds, self._bytes = 0.0, 0
