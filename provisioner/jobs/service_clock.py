"""The age of the history, in seconds of service uptime. Pure arithmetic over two clocks.

A wall clock may be a year ahead at one start, and that must not delete the history. So the store counts the uptime of
the service itself. Downtime between two runs is added as the wall clock shows it, but at most a day for each start: a
host that is off at night ages its history like one that runs, and a wrong clock moves it by a day at most.

Kept volumes have dates of the wall clock, since they outlive the store. Before one is removed, the wall clock must have
moved like this clock for a day.
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
        # The clocks when ``trusted_wall`` was last called, and the seconds of service from which on it trusts the wall.
        self._seen = (wall(), self._since)
        self._trusted_from = LONGEST_DOWNTIME

    def resume(self, seconds: float, wall: float, trusted_from: float = LONGEST_DOWNTIME) -> None:
        """Continue from what ``saved`` returned in the previous run of the service."""
        downtime = self._wall() - wall
        self._base = seconds + min(max(downtime, 0.0), LONGEST_DOWNTIME)
        self._since = self._steady()
        self._seen = (self._wall(), self._since)
        self._trusted_from = trusted_from
        if downtime > LONGEST_DOWNTIME:
            self._doubt()

    def trusted_wall(self) -> float | None:
        """Return the wall clock; None if it was more than a day ahead of expectation within the last day of service.

        A new store does not trust it for a day either: the state directory may be lost, and volumes be kept.
        """
        wall, steady = self._wall(), self._steady()
        ahead = (wall - self._seen[0]) - (steady - self._seen[1])
        self._seen = (wall, steady)
        if ahead > LONGEST_DOWNTIME:
            self._doubt()
        return wall if self.now() >= self._trusted_from else None

    def _doubt(self) -> None:
        self._trusted_from = self.now() + LONGEST_DOWNTIME

    def now(self) -> float:
        """Return the seconds of service so far."""
        return self._base + self._steady() - self._since

    def saved(self) -> tuple[float, float, float]:
        """Return what ``resume`` needs: the seconds of service, the wall clock, and from when on it is trusted."""
        return self.now(), self._wall(), self._trusted_from
