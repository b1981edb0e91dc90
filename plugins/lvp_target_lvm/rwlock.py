"""A fair reader-writer lock for a volume group: many reports or one change, first come, first served.

LVM's own lock would see to that too, but not fairly: a change that does not wait in LVM for the lock, so that it can
tell what it waits for, finds it taken again and again by reports that overlap.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RWLock:
    """For the reports and changes of one volume group in this process, whichever target makes them.

    ``changes`` counts those begun and those ended: equal before and after a look, there was none meanwhile.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._fair = trio.Lock()  # first come, first served
        self._readers = 0
        self._no_readers = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[None]:
        """Run beside other reports, once the changes that came before are through."""
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
    """The turns that all in this run of trio share who name the same ``group``."""
    try:
        groups = _groups.get()
    except LookupError:
        _groups.set(groups := WeakValueDictionary())
    return groups.setdefault(group, RWLock())
