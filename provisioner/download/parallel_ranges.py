"""Fetches an image in several ranges at once, where one connection is slow and further ones help.

A connection to a far server is slow because a lost packet halves its rate, and some servers limit each connection.
``unless_slow`` watches the one connection that a download begins with, and ``ParallelRanges`` goes on from there.
Ranges that arrive early wait in memory: the file is always filled in order, so an interrupted download can be resumed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import outcome
import structlog
import trio

from provisioner.contracts import MIB, pwrite_all
from provisioner.contracts.errors import RemoteChangedError, SourceError
from provisioner.contracts.source import closing_chunks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from provisioner.contracts import ImageSource, RemoteImage
    from provisioner.download.growing_file import GrowingFile

log = structlog.get_logger(__name__)

# Seconds until a new connection has reached its rate, and seconds to measure it.
SETTLE = 1.0
MEASURE = 1.0
# Bytes per second from which one connection is kept: the network or the disk is more likely to be the limit.
FAST = 64 * MIB
# Seconds that a download must still take for further connections to be worth their handshakes.
MIN_REST = 3.0
# Further connections are kept if they bring this many times the rate.
GAIN = 1.25
# Bytes of a range: a second of one connection, so that the round trip between two ranges does not count.
SMALLEST, LARGEST = 1 * MIB, 8 * MIB


async def unless_slow(growing_file: GrowingFile, size: int, work: Callable[[], Awaitable[None]]) -> float | None:
    """Await ``work``, which receives the rest of ``size`` bytes over one connection; cancel it if that is slow.

    Returns the connection's rate in bytes per second if it was cancelled, else None. Raises what ``work`` raises.
    """
    rate = 0.0
    scope = trio.CancelScope()

    async def watch() -> None:
        nonlocal rate
        await trio.sleep(SETTLE)
        while not scope.cancel_called:
            before = growing_file.available
            await trio.sleep(MEASURE)
            rate = (growing_file.available - before) / MEASURE
            if 0 < rate < FAST and size - growing_file.available > rate * MIN_REST:
                scope.cancel(reason="one connection is slow")

    async def until_cancelled() -> None:
        with scope:
            await work()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        result = await outcome.acapture(until_cancelled)  # so that an error is raised bare, not in a group
        nursery.cancel_scope.cancel(reason="the connection has ended")
    result.unwrap()
    return rate if scope.cancelled_caught else None


@dataclass
class _Range:
    """The bytes ``[start, stop)``, of which ``received`` have arrived; ``chunks`` of those are not written yet."""

    start: int
    stop: int
    received: int = 0
    chunks: list[bytes] = field(default_factory=list)


class ParallelRanges:
    """The rest of one download, over at most ``most`` connections. ``rate`` is that of a single one."""

    def __init__(
        self,
        source: ImageSource,
        image: RemoteImage,
        growing_file: GrowingFile,
        received: Callable[[int], None],
        *,
        most: int,
        rate: float,
    ) -> None:
        assert image.size is not None
        self._source, self._image, self._growing_file, self._received = source, image, growing_file, received
        self._most, self._rate = most, rate
        self._length = round(min(max(rate, SMALLEST), LARGEST))
        self._ranges: deque[_Range] = deque()  # in order; the first one is being written
        self._next = growing_file.available  # where the next range starts
        self._size = image.size
        self._end = image.size  # ranges up to here are fetched; less than the size if this method is given up
        self._arrived = 0
        self._connections = 0
        self._allowed = 0
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Return when the image is complete, when further connections do not help, or after an error of the source.

        What is missing then is for one connection, which also finds out what the error means.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._adapt, nursery)
            await self._write()
            nursery.cancel_scope.cancel(reason="all ranges are written")

    async def _adapt(self, nursery: trio.Nursery) -> None:
        """Double the connections as long as the rate grows."""
        rate, count = self._rate, 1
        while count < self._most:
            more = min(2 * count, self._most)
            self._allow(more, nursery)
            await trio.sleep(SETTLE)
            before = self._arrived
            await trio.sleep(MEASURE)
            faster = (self._arrived - before) / MEASURE
            log.info("tried further connections", connections=more, mib_s=_mib(faster), before=_mib(rate))
            if faster < rate * GAIN:
                break
            if self._end < self._size:  # a range failed
                return
            rate, count = faster, more
        self._allow(count, nursery)
        if count == 1:
            self._give_up(self._next)

    def _allow(self, connections: int, nursery: trio.Nursery) -> None:
        self._allowed = connections
        while self._connections < connections:
            self._connections += 1
            nursery.start_soon(self._fetch_ranges)

    def _give_up(self, end: int) -> None:
        """Fetch nothing from ``end`` on."""
        self._end = min(self._end, end)
        self._changed.unpark_all()

    async def _fetch_ranges(self) -> None:
        """Fetch one range after the other over one connection."""
        while self._connections <= self._allowed and self._next < self._end:
            # Ranges far ahead of a slow one would take too much memory.
            if self._next >= self._growing_file.available + (self._most + 1) * self._length:
                await self._changed.park()
                continue
            part = _Range(self._next, min(self._next + self._length, self._end))
            self._next = part.stop
            self._ranges.append(part)
            try:
                await self._fetch(part)
            except SourceError as error:
                log.warning("a range failed, going on with one connection", reason=error.message, at_byte=part.start)
                self._give_up(part.start + part.received)
        self._connections -= 1

    async def _fetch(self, part: _Range) -> None:
        image = self._image
        async with self._source.open(image.pinned or image.url, part.start, part.stop, image.version) as stream:
            if stream.start != part.start:
                raise RemoteChangedError("the server sent a different part of the image than requested")
            async with closing_chunks(stream) as chunks:
                async for chunk in chunks:
                    part.chunks.append(chunk[: part.stop - part.start - part.received])
                    part.received += len(part.chunks[-1])
                    self._arrived += len(chunk)
                    self._changed.unpark_all()
        if part.received < part.stop - part.start:
            raise RemoteChangedError("the server sent less of the image than requested")

    async def _write(self) -> None:
        """Append what has arrived to the file, in order, up to the end."""
        while (available := self._growing_file.available) < self._end:
            while self._ranges and self._ranges[0].stop <= available:
                self._ranges.popleft()
            if not self._ranges or not self._ranges[0].chunks:
                await self._changed.park()
                continue
            chunks, self._ranges[0].chunks = self._ranges[0].chunks, []
            size = await trio.to_thread.run_sync(_write, self._growing_file.fd, chunks, available)
            self._growing_file.waiting_for = None
            self._received(size)
            self._growing_file.advance(available + size)
            self._changed.unpark_all()


def _write(fd: int, chunks: list[bytes], offset: int) -> int:
    """Write the chunks one after the other; return their size."""
    content = b"".join(chunks)
    pwrite_all(fd, content, offset)
    return len(content)


def _mib(rate: float) -> float:
    return round(rate / MIB, 1)
