"""Throttles clients that guess credentials: counts failures per address in a table of limited size.

A caller with a valid credential is never throttled, even behind such an address. The caller passes the time.
"""

from __future__ import annotations

from collections import OrderedDict

WINDOW = 60.0
# Addresses in the table; when it is full, the one that failed longest ago is dropped.
MAX_ADDRESSES = 10_000


class FailureCounter:
    """Failed authentications of the last minute, by address."""

    def __init__(self, max_failures: int, window: float = WINDOW) -> None:
        self._max_failures = max_failures
        self._window = window
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def failed(self, address: str, now: float) -> tuple[float | None, bool]:
        """Count a failure; return the seconds to wait if the address is over its limit (else None) and whether to log.

        All failures up to the limit and the first one above it are logged.
        """
        recent = [at for at in self._failures.pop(address, []) if at > now - self._window]
        news = len(recent) <= self._max_failures
        # Keep no more than the limit: older failures take memory and do not change the wait.
        recent = [*recent[-self._max_failures :], now]
        self._failures[address] = recent
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if len(recent) <= self._max_failures:
            return None, news
        return recent[-self._max_failures] + self._window - now, news

    def __len__(self) -> int:
        return len(self._failures)
