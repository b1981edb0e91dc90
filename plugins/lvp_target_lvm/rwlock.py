"""A fair (FIFO) reader-writer lock for a volume group: many reports or one change at a time.

LVM's own lock is not fair. Changes fail instead of waiting for it, so overlapping reports could starve them.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RWLock:
    """A lock for the reports and changes of one volume group, shared by all targets in this process.

    ``changes`` counts the starts and ends of changes: if it is the same before and after a report, none ran meanwhile.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._fair = trio.Lock()  # first come, first served
        self._readers = 0
        self._no_readers = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[None]:
        """Hold the lock together with other reports, after changes that were queued earlier."""
        async with self._fair:
            self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._no_readers.unpark_all()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[None]:
        """Hold the lock exclusively."""
        async with self._fair:
            while self._readers:
                await self._no_readers.park()
            self.changes += 1
            try:
                yield
            finally:
                self.changes += 1


_groups: trio.lowlevel.RunVar[WeakValueDictionary[object, RWLock]] = trio.lowlevel.RunVar("locks by volume group")


def lock_of(group: object) -> RWLock:
    """Return the lock for ``group``, shared within this run of trio."""
    try:
        groups = _groups.get()
    except LookupError:
        _groups.set(groups := WeakValueDictionary())
    return groups.setdefault(group, RWLock())
