"""The downloads under way: one for each image however many jobs wait for it. What is published is the cache's."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.cache.flight import Flight, as_provisioner_error
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.urls import shown

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from provisioner.cache.entry import Expectation
    from provisioner.cache.partials import Partials
    from provisioner.config import CacheSettings
    from provisioner.contracts import ImageSource
    from provisioner.download.inspection import ImageInfo

    MakeRoom = Callable[[int], Awaitable[None]]
    Publish = Callable[[Flight, dict[str, str], ImageInfo], Awaitable[None]]

log = structlog.get_logger(__name__)

# What is reserved at a time for an image whose server does not say its length: enough that the next piece is there
# before a fast download has filled this one.
_GROWTH = 1024**3


class Flights:
    """``users`` counts who uses an entry, by digest: shared with the cache, which evicts nothing that is counted."""

    def __init__(
        self,
        settings: CacheSettings,
        users: Counter[str],
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
        self._partials: Partials | None = None
        self._nursery: trio.Nursery | None = None
        # Set when the daemon stops: what is given up now is carried on after the start.
        self.stopping = False

    async def run(self, partials: Partials, task_status: trio.TaskStatus[None]) -> None:
        """Download until cancelled."""
        self._partials = partials
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def coming(self) -> Iterator[tuple[int, int]]:
        """(bytes reserved, bytes of them there already) of each download."""
        return ((flight.arrival.limit, flight.arrival.available) for flight in self._by_key.values())

    @asynccontextmanager
    async def aboard(self, source: ImageSource, expectation: Expectation) -> AsyncIterator[Flight]:
        """The download of that image, begun where there is none; given up when the last one leaves it."""
        flight = self._by_key.get(expectation.flight_key) or await self._take_off(source, expectation)
        flight.users += 1
        if flight.entry is not None:
            self._users[flight.entry.sha256] += 1
        try:
            yield flight
        finally:
            flight.users -= 1
            if flight.entry is not None:
                self._users[flight.entry.sha256] -= 1
            if not flight.users:
                await self._last_left(flight)

    async def _take_off(self, source: ImageSource, expectation: Expectation) -> Flight:
        size = expectation.remote.size
        room = self._growth if size is None else size
        await self._make_room(room)
        waiting = self._by_key.get(expectation.flight_key)  # another job may have been quicker
        if waiting is not None:
            return waiting
        assert self._partials is not None
        assert self._nursery is not None
        try:
            fd, partial, there = self._partials.open(_resumable(expectation), size)
        except OSError as error:
            raise as_provisioner_error(error) from error
        gives_back = self._settings.page_cache == "give-back"
        flight = Flight(source, expectation, fd, partial, room, gives_back=gives_back)
        if there:
            log.info("carrying on with an earlier download", url=shown(expectation.remote.url), at_byte=there)
            flight.arrival.advance(there)
        self._by_key[expectation.flight_key] = flight
        self._nursery.start_soon(self._fly, flight)
        return flight

    async def _fly(self, flight: Flight) -> None:
        async def publish(digests: dict[str, str], info: ImageInfo) -> None:
            await self._publish(flight, digests, info)

        try:
            async with trio.open_nursery() as nursery:
                if flight.expectation.remote.size is None:
                    nursery.start_soon(self._reserve_on, flight)
                await flight.run(self._settings.download_attempts, self._received, publish)
                nursery.cancel_scope.cancel()
        finally:
            self._close_boarding(flight)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                if flight.entry is None and not self.stopping:
                    # In a thread: a large file's blocks take their time.
                    await trio.to_thread.run_sync(lambda: flight.partial.unlink(missing_ok=True))
                if not flight.users:
                    await flight.close()
            flight.ended.set()

    async def _reserve_on(self, flight: Flight) -> None:
        """Keep room ahead of an image of unknown size; where there is none, its download ends at its limit."""
        arrival = flight.arrival
        with suppress(ProvisionerError):
            while True:
                await arrival.arrived(0, arrival.limit - self._growth // 2)
                await self._make_room(self._growth)
                arrival.limit += self._growth

    async def _last_left(self, flight: Flight) -> None:
        if flight.ended.is_set():
            await flight.close()
            return
        self._close_boarding(flight)
        flight.scope.cancel(reason="nobody waits for this download any more")
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await flight.ended.wait()  # it closes its file itself, once its threads have let go of it

    def _close_boarding(self, flight: Flight) -> None:
        if self._by_key.get(flight.expectation.flight_key) is flight:
            del self._by_key[flight.expectation.flight_key]


def _resumable(expectation: Expectation) -> str | None:
    """What names the content for good; None where a later download could not tell that it is the same."""
    remote = expectation.remote
    sure = expectation.checksum is not None and remote.version is not None and remote.accepts_ranges and remote.size
    return expectation.flight_key if sure else None
