"""Whose turn it is with a volume group: any number of reports, or one change, in the order they came.

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


class Turns:
    """For the reports and changes of one volume group in this process, whichever target makes them.

    ``changes`` counts those begun and those ended: equal before and after a look, there was none meanwhile.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._line = trio.Lock()  # first come, first served
        self._reports = 0
        self._quiet = trio.lowlevel.ParkingLot()

    @asynccontextmanager
    async def report(self) -> AsyncIterator[None]:
        """Run beside other reports, once the changes that came before are through."""
        async with self._line:
            self._reports += 1
        try:
            yield
        finally:
            self._reports -= 1
            if not self._reports:
                self._quiet.unpark_all()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Run alone."""
        async with self._line:
            while self._reports:
                await self._quiet.park()
            self.changes += 1
            try:
                yield
            finally:
                self.changes += 1


_groups: trio.lowlevel.RunVar[WeakValueDictionary[object, Turns]] = trio.lowlevel.RunVar("turns by volume group")


def turns_with(group: object) -> Turns:
    """The turns that all in this run of trio share who name the same ``group``."""
    try:
        groups = _groups.get()
    except LookupError:
        _groups.set(groups := WeakValueDictionary())
    return groups.setdefault(group, Turns())
