"""The age of the history, in seconds of service uptime. Pure arithmetic over two clocks.

A wall clock may be a year ahead at one start, and that must not delete the history. So the store counts the uptime of
the service itself. Downtime between two runs is added as the wall clock shows it, but at most a day for each start: a
host that is off at night ages its history like one that runs, and a wrong clock moves it by a day at most.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# The most seconds of downtime that one start adds.
LONGEST_DOWNTIME = 86400.0


class ServiceClock:
    """Seconds of service since the store was created. ``wall`` and ``steady`` are the clocks it uses."""

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
        """Return the seconds of service so far."""
        return self._base + self._steady() - self._since

    def saved(self) -> tuple[float, float]:
        """Return what ``resume`` needs: the seconds of service and the wall clock now."""
        return self.now(), self._wall()
