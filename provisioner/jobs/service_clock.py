"""The age of the history, counted in the time the service has run. Pure arithmetic over two clocks.

A wall clock may be a year ahead for one start, and one look at it must not delete the history. So ended jobs are not
aged by the wall clock: the store keeps a count of its own, in seconds of running time. The time between two lives is
added as the wall clock tells it, but never more than a day for each start: a host that is off for the night ages its
history as one that runs, and a wrong clock moves it by a day at most.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# The most that one start adds for the time before it, in seconds.
LONGEST_DOWNTIME = 86400.0


class ServiceClock:
    """Seconds of service since the store was made. ``wall`` and ``steady`` are the clocks it is counted with."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._steady = steady
        self._base = 0.0
        self._since = steady()

    def resume(self, seconds: float, wall: float) -> None:
        """Continue from what ``saved`` returned in the previous run of the service."""
        downtime = self._wall() - wall
        self._base = seconds + min(max(downtime, 0.0), LONGEST_DOWNTIME)
        self._since = self._steady()

    def now(self) -> float:
        """Seconds of service so far."""
        return self._base + self._steady() - self._since

    def saved(self) -> tuple[float, float]:
        """What ``resume`` needs: seconds of service, and the wall clock beside them."""
        return self.now(), self._wall()
