"""Queues for requests without a credential: a few per address run at once, the rest wait.

A flood from one address then cannot occupy the event loop, which stays free for requests from elsewhere. No request is
refused, so monitoring behind the same address only waits.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# Requests of one address in progress at once. /metrics takes a thread and some 10 ms of the interpreter lock.
AT_ONCE = 2
# Paths that do more than respond from memory have their own queues: /health does not wait behind a hung /readyz.
_SLOW_PATHS = frozenset({"/metrics", "/readyz"})


class RequestQueue:
    """A first-in, first-out queue for each address; a queue without requests is removed."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._queues: dict[tuple[str, str], trio.CapacityLimiter] = {}

    @asynccontextmanager
    async def turn(self, address: str, path: str) -> AsyncIterator[Callable[[], None]]:
        """Run the block when a slot is free; yield a function that frees the slot before the block's end."""
        key = (address, path if path in _SLOW_PATHS else "")
        queue = self._queues.setdefault(key, trio.CapacityLimiter(self._at_once))
        request = object()

        def leave() -> None:
            with suppress(RuntimeError):  # already left
                queue.release_on_behalf_of(request)
            if not queue.borrowed_tokens and not queue.statistics().tasks_waiting:
                self._queues.pop(key, None)

        try:
            await queue.acquire_on_behalf_of(request)
            yield leave
        finally:
            leave()

    def __len__(self) -> int:
        return len(self._queues)
