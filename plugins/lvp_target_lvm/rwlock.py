"""A fair (FIFO) reader-writer lock for a volume group: many reports or one change.

LVM's own lock is not fair: changes do not wait for it inside LVM, so overlapping reports could starve them.
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

    ``changes`` counts changes begun and ended: if equal before and after a report, none ran in between.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._fair = trio.Lock()  # first come, first served
        self._readers = 0
        self._no_readers = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[None]:
        """Run together with other reports, after the changes that were queued earlier."""
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
        """Run alone."""
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
