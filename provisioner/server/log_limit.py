"""A limit on log lines that clients can cause: per address and in total, with a count of those left out."""

from __future__ import annotations

from collections import Counter

# Seconds of a window.
WINDOW = 60.0
# Lines per window, of one address and of all: enough to diagnose a problem, and under 20 MiB a day.
PER_ADDRESS = 20
TOTAL = 100


class LogLimit:
    """A counter of lines in windows of fixed length. The caller passes the time."""

    def __init__(self, per_address: int = PER_ADDRESS, total: int = TOTAL, window: float = WINDOW) -> None:
        self._per_address = per_address
        self._total = total
        self._window = window
        self._started = -window
        self._written: Counter[str] = Counter()
        self._suppressed = 0

    def allows(self, address: str, now: float) -> bool:
        """Return whether the next line about ``address`` may be written, and count it either way."""
        if now - self._started >= self._window:
            self._started = now
            self._written.clear()
        if self._written.total() >= self._total or self._written[address] >= self._per_address:
            self._suppressed += 1
            return False
        self._written[address] += 1
        return True

    def take_suppressed(self) -> int:
        """Return how many lines were left out since the last call."""
        count, self._suppressed = self._suppressed, 0
        return count
