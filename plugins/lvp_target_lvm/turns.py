"""Whose turn it is with LVM: any number of reports, or one change, in the order they came.

LVM's own lock would see to that too, but not fairly: a change that does not wait in LVM for the lock, so that it can
tell what it waits for, finds it taken again and again by reports that overlap.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """For the reports and changes of one volume group in this process."""

    def __init__(self) -> None:
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
            yield
