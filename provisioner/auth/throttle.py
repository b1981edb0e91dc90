"""Throttles clients that guess credentials: counts failures per address in a table of limited size.

A caller with a good credential is never held up, whatever others behind its address do. The clock is passed in.
"""

from __future__ import annotations

from collections import OrderedDict

WINDOW = 60.0
# Addresses remembered; beyond it the one that failed longest ago is forgotten.
MAX_ADDRESSES = 10_000


class FailureCounter:
    """Failed authentications of the last minute, by address."""

    def __init__(self, max_failures: int, window: float = WINDOW) -> None:
        self._max_failures = max_failures
        self._window = window
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def failed(self, address: str, now: float) -> tuple[float | None, bool]:
        """Count a failure: the seconds to wait where the address has had its share, else None; and whether it is news.

        News are all up to the share, and the first one past it.
        """
        recent = [at for at in self._failures.pop(address, []) if at > now - self._window]
        news = len(recent) <= self._max_failures
        # No more than the limit is kept: what is over it would only lengthen the memory, not the wait.
        recent = [*recent[-self._max_failures :], now]
        self._failures[address] = recent
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if len(recent) <= self._max_failures:
            return None, news
        return recent[-self._max_failures] + self._window - now, news

    def __len__(self) -> int:
        return len(self._failures)
