"""The queue of jobs that wait for a worker: by priority, then first come, first served."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

# Tickets of discarded items are swept out once there are more of them than this, and more than items.
_SWEEP = 64


class PriorityQueue(Generic[T]):
    """Put never blocks; get waits. ``discard`` removes an item before its turn and frees it at once."""

    def __init__(self) -> None:
        # The heap holds tickets only: a discarded item is freed at once, its ticket swept out later.
        self._heap: list[tuple[int, int]] = []
        self._items: dict[int, T] = {}
        self._sequence_of: dict[int, int] = {}
        self._sequence = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, priority: int) -> None:
        """Add the item to the queue."""
        self._sequence += 1
        self._items[self._sequence] = item
        self._sequence_of[id(item)] = self._sequence
        heapq.heappush(self._heap, (-priority, self._sequence))
        self._waiting.unpark()

    def discard(self, item: T) -> None:
        """Remove the item, which must be in the queue."""
        del self._items[self._sequence_of.pop(id(item))]
        if len(self._heap) > 2 * len(self._items) + _SWEEP:
            self._heap = [entry for entry in self._heap if entry[1] in self._items]
            heapq.heapify(self._heap)

    def stop(self) -> None:
        """Serve no more items; waiting items stay in the queue."""
        self._stopped = True

    async def get(self) -> T:
        """Return the next item; wait until there is one."""
        await trio.lowlevel.checkpoint()
        while self._stopped or not self._items:
            await self._waiting.park()
        while True:
            _, sequence = heapq.heappop(self._heap)
            item = self._items.pop(sequence, None)
            if item is not None:
                del self._sequence_of[id(item)]
                return item
