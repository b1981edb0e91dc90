"""The downloads under way: one for each image however many jobs wait for it. What is published is the cache's.

What fails here is one job's: a file that cannot be removed is its ``RollbackError``, never the service's end.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog
import trio

from provisioner.cache.flight import Flight, as_provisioner_error
from provisioner.cache.partials import Content
from provisioner.contracts.errors import ProvisionerError, RollbackError
from provisioner.contracts.shield import undoing
from provisioner.contracts.urls import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from provisioner.cache.catalog import Users
    from provisioner.cache.entry import Expectation
    from provisioner.cache.partials import Partials
    from provisioner.config import CacheSettings
    from provisioner.contracts import ImageSource
    from provisioner.download.follow import Hashes
    from provisioner.download.inspection import ImageInfo

    MakeRoom = Callable[[int], Awaitable[None]]
    Publish = Callable[[Flight, Hashes, ImageInfo], Awaitable[None]]

log = structlog.get_logger(__name__)

# What is reserved at a time for an image whose server does not say its length: enough that the next piece is there
# before a fast download has filled this one.
_GROWTH = 1024**3
# Seconds between two looks for remains of downloads that are too old.
_SWEEP_INTERVAL = 3600.0


class Flights:
    """``users`` counts who uses an entry, by digest: shared with the cache, which evicts nothing that is counted."""

    def __init__(
        self,
        settings: CacheSettings,
        users: Users,
        received: Callable[[int], None],
        make_room: MakeRoom,
        publish: Publish,
    ) -> None:
        self._settings = settings
        self._users = users
        self._received = received
        self._make_room = make_room
        self._publish = publish
        self._growth = max(1, min(_GROWTH, settings.max_size // 8))
        self._by_key: dict[str, Flight] = {}
        # One task begins the download of an image; each lock goes with the last task that waits for it.
        self._beginning: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._partials: Partials | None = None
        self._nursery: trio.Nursery | None = None
        # Set when the daemon stops: what is given up now is carried on after the start.
        self.stopping = False

    async def run(self, partials: Partials, task_status: trio.TaskStatus[None]) -> None:
        """Download until cancelled."""
        self._partials = partials
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(_SWEEP_INTERVAL)
                await trio.to_thread.run_sync(partials.sweep_old)

    def left_over(self) -> int:
        """Bytes of files that an earlier download left."""
        return self._partials.left_over if self._partials is not None else 0

    def sweep(self, wanted: int) -> int:
        """Free ``wanted`` bytes of those files, if there are so many; the bytes freed. Blocking."""
        return self._partials.sweep(wanted) if self._partials is not None else 0

    def sweep_all(self) -> int:
        """Remove all of those files; the bytes freed. Blocking."""
        return self._partials.sweep_all() if self._partials is not None else 0

    def coming(self) -> Iterator[tuple[int, int]]:
        """(bytes reserved, bytes of them there already) of each download."""
        return ((flight.arrival.limit, flight.arrival.available) for flight in self._by_key.values())

    @asynccontextmanager
    async def aboard(self, source: ImageSource, expectation: Expectation) -> AsyncIterator[Flight]:
        """The download of that image, begun where there is none; given up when the last one leaves it."""
        flight = self._by_key.get(expectation.flight_key) or await self._take_off(source, expectation)
        flight.users += 1
        if flight.entry is not None:
            self._users.hold(flight.entry.sha256)
        try:
            yield flight
        finally:
            flight.users -= 1
            if flight.entry is not None:
                self._users.release(flight.entry.sha256)
            if not flight.users:
                await self._last_left(flight)

    async def _take_off(self, source: ImageSource, expectation: Expectation) -> Flight:
        key = expectation.flight_key
        async with self._beginning.setdefault(key, trio.Lock()):
            waiting = self._by_key.get(key)  # another job may have been quicker
            if waiting is not None:
                return waiting
            size = expectation.remote.size
            room = self._growth if size is None else size
            fd, partial, there = await self._open(expectation)
            try:
                await self._make_room(room)
            except BaseException:
                await self._abandon(fd, partial, there)
                raise
            # Without an await from here on: the room is reserved by the flight.
            gives_back = self._settings.page_cache == "give-back"
            flight = Flight(source, expectation, fd, partial, room, gives_back=gives_back)
            if there:
                log.info("carrying on with an earlier download", url=shown(expectation.remote.url), at_byte=there)
                flight.arrival.advance(there)
            assert self._nursery is not None
            self._by_key[key] = flight
            self._nursery.start_soon(self._fly, flight)
            return flight

    async def _open(self, expectation: Expectation) -> tuple[int, Path, int]:
        assert self._partials is not None
        remote = expectation.remote
        content = Content(remote.url, remote.version, _resumable(expectation))
        try:
            return await trio.to_thread.run_sync(self._partials.open, content, remote.size)
        except OSError as error:
            raise as_provisioner_error(error) from error

    async def _abandon(self, fd: int, partial: Path, there: int) -> None:
        """Undo ``_open``: a new file goes, one that an earlier download left stays for a later one."""
        partials = self._partials
        assert partials is not None

        def close() -> None:
            os.close(fd)
            if there:
                partials.keep(partial)
            else:
                partials.remove(partial)

        with undoing("remove the file of a download that was not begun", 30):
            await trio.to_thread.run_sync(close)

    async def _fly(self, flight: Flight) -> None:
        async def publish(hashes: Hashes, info: ImageInfo) -> None:
            await self._publish(flight, hashes, info)

        try:
            async with trio.open_nursery() as nursery:
                if flight.expectation.remote.size is None:
                    nursery.start_soon(self._reserve_on, flight)
                await flight.run(self._settings.download_attempts, self._received, publish)
                nursery.cancel_scope.cancel()
        except* Exception as group:
            log.error("unexpected error in a download", exc_info=group)
        finally:
            self._close_boarding(flight)
            await self._clean_up(flight)
            flight.ended.set()

    async def _clean_up(self, flight: Flight) -> None:
        """Remove what a download leaves. What fails is kept for its last job to raise."""
        try:
            if flight.entry is None and not self.stopping:
                assert self._partials is not None
                with undoing("remove the file of a broken download", 30):  # a large file's blocks take their time
                    await trio.to_thread.run_sync(self._partials.remove, flight.partial)
        except RollbackError as error:
            log.error("a download's file cannot be removed", file=flight.partial.name, reason=error.message)
            flight.rollback_error = error
        if not flight.users:
            try:
                await flight.close()
            except RollbackError as error:
                flight.rollback_error = flight.rollback_error or error

    async def _reserve_on(self, flight: Flight) -> None:
        """Keep room ahead of an image of unknown size; where there is none, its download ends at its limit."""
        arrival = flight.arrival
        with suppress(ProvisionerError):
            while True:
                await arrival.arrived(0, arrival.limit - self._growth // 2)
                await self._make_room(self._growth)
                arrival.limit += self._growth

    async def _last_left(self, flight: Flight) -> None:
        """Give the download up, or close what it fetched. Raises RollbackError if something of it is left behind."""
        if flight.ended.is_set():
            await flight.close()
        else:
            self._close_boarding(flight)
            flight.scope.cancel(reason="nobody waits for this download any more")
            with undoing("end a download", 30):
                await flight.ended.wait()  # it closes its file itself, once its threads have let go of it
        if flight.rollback_error is not None:
            raise flight.rollback_error

    def _close_boarding(self, flight: Flight) -> None:
        if self._by_key.get(flight.expectation.flight_key) is flight:
            del self._by_key[flight.expectation.flight_key]


def _resumable(expectation: Expectation) -> str | None:
    """What names the content for good; None where a later download could not tell that it is the same."""
    remote = expectation.remote
    sure = expectation.checksum is not None and remote.version is not None and remote.accepts_ranges and remote.size
    return expectation.flight_key if sure else None
