"""Jobs waiting for a slot: the highest priority first, and among equals the one that came first."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class WaitingLine(Generic[T]):
    """Put never blocks; get waits. ``discard`` takes one out of the line before its turn."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, T]] = []
        self._gone: set[int] = set()
        self._sequence = 0
        self._tickets: dict[int, int] = {}
        self._waiting = trio.Semaphore(0)
        self._stopped = False

    def __len__(self) -> int:
        return len(self._heap) - len(self._gone)

    def put(self, item: T, priority: int) -> None:
        """Join the line."""
        self._sequence += 1
        self._tickets[id(item)] = self._sequence
        heapq.heappush(self._heap, (-priority, self._sequence, item))
        self._waiting.release()

    def discard(self, item: T) -> None:
        """Leave the line; the item must be in it."""
        self._gone.add(self._tickets.pop(id(item)))

    def stop(self) -> None:
        """Nobody's turn comes any more; who waits in the line stays in it."""
        self._stopped = True

    async def get(self) -> T:
        """The next in line."""
        while True:
            await self._waiting.acquire()
            if self._stopped:
                await trio.sleep_forever()
            _, ticket, item = heapq.heappop(self._heap)
            if ticket not in self._gone:
                del self._tickets[id(item)]
                return item
            self._gone.remove(ticket)
