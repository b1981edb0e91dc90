"""The speed limit that the transfers of one source share. Owns the arithmetic and the waiting in worker threads."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A sleeping thread looks this often whether it is still wanted.
_GLANCE = 0.1


class Pace:
    """Holds ``rate`` bytes a second over all threads together; None lets everything pass."""

    def __init__(self, rate: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    def book(self, size: int) -> float:
        """Account for ``size`` bytes; how many seconds to wait before the next ones."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + size / self._rate
            return self._free_at - now

    def spend(self, size: int, check: Callable[[], None]) -> None:
        """Account for ``size`` bytes and wait. ``check`` is called meanwhile and may raise to end it."""
        if (wait := self.book(size)) <= 0:
            return
        until = self._clock() + wait
        while (left := until - self._clock()) > 0:
            check()
            time.sleep(min(left, _GLANCE))
