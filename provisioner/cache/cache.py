"""The image cache: look-up, single flight, publishing, eviction and pins.

What always holds: an entry is published only after its digest matched; a published file never changes; an image
asked for twice at once is downloaded once; nothing that a job uses is evicted.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog
import trio

from provisioner.cache.entry import Entry, Expectation, bytes_over, choose_victims, evictable
from provisioner.cache.files import CacheFiles, digest_of
from provisioner.cache.flight import Flight, as_provisioner_error
from provisioner.cache.handle import CachedImage, StoredImage
from provisioner.cache.unpacked import UnpackedImage
from provisioner.contracts.errors import CacheError, CacheFullError, ConflictError, NotFoundError, ProvisionerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from provisioner.config import CacheSettings
    from provisioner.contracts import Checksum, ImageSource
    from provisioner.download.inspection import ImageInfo

log = structlog.get_logger(__name__)
T = TypeVar("T")

# What is reserved at a time for an image whose server does not say its length: enough that the next piece is there
# before a fast download has filled this one.
_GROWTH = 1024**3


class ImageCache:
    """Owns the cache directory. ``run`` must be running for anything to be downloaded."""

    def __init__(
        self,
        directory: Path,
        settings: CacheSettings,
        received: Callable[[int], None] = lambda _bytes: None,
        evicted: Callable[[int], None] = lambda _images: None,
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._received = received
        self._evicted = evicted
        self._growth = max(1, min(_GROWTH, settings.max_size // 8))
        self._entries: dict[str, Entry] = {}
        self._urls: dict[str, tuple[str, str]] = {}
        self._users: Counter[str] = Counter()
        self._flights: dict[str, Flight] = {}
        self._nursery: trio.Nursery | None = None
        self._files: CacheFiles | None = None
        # One thread at a time: SQLite's connection and the directory are shared.
        self._thread = trio.CapacityLimiter(1)
        # One at a time publishes or removes: what is decided on stays so until it is done.
        self._changing = trio.Lock()
        # Set when the daemon stops: what is given up now is carried on after the start.
        self.stopping = False

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the cache and serve until cancelled. Raises CacheError where the directory cannot be used."""
        try:
            self._files = files = await trio.to_thread.run_sync(CacheFiles, self._directory, _report)
        except OSError as error:
            raise CacheError(f"the cache directory {self._directory} cannot be used: {error.strerror}") from error
        self._entries, self._urls = files.entries, files.urls
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            files.index.close()

    @property
    def attempts(self) -> int:
        """How often a server is asked in a row that gives nothing."""
        return self._settings.download_attempts

    # --- look-up ---

    def find(self, checksum: Checksum | None, url: str, version: str | None) -> Entry | None:
        """The entry for that content, or for that url as long as the server still calls it ``version``."""
        if checksum is not None:
            return self._find_digest(checksum)
        known = self._urls.get(url)
        if known is None or version is None or known[0] != version:
            return None
        return self._entries.get(known[1])

    def _find_digest(self, checksum: Checksum) -> Entry | None:
        if checksum.algorithm == "sha256":
            return self._entries.get(checksum.hex)
        return next((entry for entry in self._entries.values() if entry.sha512 == checksum.hex), None)

    @asynccontextmanager
    async def image(self, source: ImageSource, expectation: Expectation) -> AsyncIterator[CachedImage]:
        """The image, from the cache or on its way into it, kept in place until the context is left.

        Leaving while it still comes gives the download up, unless another job waits for it too.
        """
        stored = await self._open_stored(expectation)
        if stored is not None:
            async with self._using(stored):
                yield stored
            return
        flight = self._flights.get(expectation.flight_key) or await self._take_off(source, expectation)
        async with self._aboard(flight):
            yield flight

    async def _open_stored(self, expectation: Expectation) -> StoredImage | None:
        remote = expectation.remote
        entry = self.find(expectation.checksum, remote.url, remote.version)
        if entry is None:
            return None
        self._users[entry.sha256] += 1  # before the first await: nobody evicts it now
        fd = None
        try:
            fd = await self._in_thread(lambda files: files.open(entry))
        finally:
            if fd is None:
                self._users[entry.sha256] -= 1
        if fd is not None:
            return StoredImage(entry, fd)
        log.warning("a cached image was changed or removed; it is downloaded again", file=entry.file_name)
        if self._entries.get(entry.sha256) is entry:
            del self._entries[entry.sha256]
            await self._in_thread(lambda files: files.index.remove([entry.sha256]))
        return None

    @asynccontextmanager
    async def _using(self, stored: StoredImage) -> AsyncIterator[None]:
        entry = await stored.verified()
        try:
            await self._touch(entry.sha256)
            yield
        finally:
            stored.close()
            self._users[entry.sha256] -= 1

    async def _touch(self, sha256: str) -> None:
        if sha256 not in self._entries:  # another job has just found it changed
            return
        entry = msgspec.structs.replace(self._entries[sha256], last_used_at=time.time())
        self._entries[sha256] = entry
        try:
            await self._in_thread(lambda files: files.index.put(entry))
        except CacheError as error:  # on a full disk what is cached can still be used
            log.warning("the use of a cached image could not be noted", file=entry.file_name, reason=error.message)

    @asynccontextmanager
    async def unpacked(self, image: CachedImage, info: ImageInfo, limit: int) -> AsyncIterator[UnpackedImage]:
        """The inside of a compressed image, at most ``limit`` bytes; its disk space is given back at the end."""
        fd = await self._in_thread(lambda files: files.partials.scratch())
        try:
            yield UnpackedImage(image, info, fd, limit, self._settings.min_free)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await trio.to_thread.run_sync(os.close, fd)  # in a thread: a large file's blocks take their time

    # --- downloads ---

    async def _take_off(self, source: ImageSource, expectation: Expectation) -> Flight:
        size = expectation.remote.size
        room = self._growth if size is None else size
        await self.make_room(room)
        waiting = self._flights.get(expectation.flight_key)  # another job may have been quicker
        if waiting is not None:
            return waiting
        assert self._files is not None
        assert self._nursery is not None
        try:
            fd, partial, there = self._files.partials.open(_resumable(expectation), size)
        except OSError as error:
            raise as_provisioner_error(error) from error
        flight = Flight(source, expectation, fd, partial, room)
        if there:
            log.info("carrying on with an earlier download", url=expectation.remote.url, at_byte=there)
            flight.arrival.advance(there)
        self._flights[expectation.flight_key] = flight
        self._nursery.start_soon(self._fly, flight)
        return flight

    async def _fly(self, flight: Flight) -> None:
        try:
            async with trio.open_nursery() as nursery:
                if flight.expectation.remote.size is None:
                    nursery.start_soon(self._reserve_on, flight)
                await flight.run(self._settings.download_attempts, self._received, self._publisher(flight))
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
                await self.make_room(self._growth)
                arrival.limit += self._growth

    def _publisher(self, flight: Flight) -> Callable[[dict[str, str], ImageInfo], Awaitable[None]]:
        async def publish(digests: dict[str, str], info: ImageInfo) -> None:
            async with self._changing:
                known, remote = self._entries.get(digests["sha256"]), flight.expectation.remote
                fd, partial = flight.arrival.fd, flight.partial
                entry = await self._in_thread(lambda files: files.publish(fd, partial, remote, digests, info, known))
                # Without an await from here on: the entry, and who uses it, appear at once.
                flight.entry = self._entries[entry.sha256] = entry
                self._users[entry.sha256] += flight.users
                if remote.version is not None:
                    self._urls[remote.url] = (remote.version, entry.sha256)

        return publish

    @asynccontextmanager
    async def _aboard(self, flight: Flight) -> AsyncIterator[None]:
        flight.users += 1
        if flight.entry is not None:
            self._users[flight.entry.sha256] += 1
        try:
            yield
        finally:
            flight.users -= 1
            if flight.entry is not None:
                self._users[flight.entry.sha256] -= 1
            if not flight.users:
                await self._last_left(flight)

    async def _last_left(self, flight: Flight) -> None:
        if flight.ended.is_set():
            await flight.close()
            return
        self._close_boarding(flight)
        flight.scope.cancel(reason="nobody waits for this download any more")
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await flight.ended.wait()  # it closes its file itself, once its threads have let go of it

    def _close_boarding(self, flight: Flight) -> None:
        if self._flights.get(flight.expectation.flight_key) is flight:
            del self._flights[flight.expectation.flight_key]

    # --- room ---

    async def make_room(self, wanted: int) -> None:
        """Evict until ``wanted`` more bytes fit. Raises CacheFullError."""
        async with self._changing:
            free = await self._free_bytes()
            needed = bytes_over(
                wanted,
                stored=self.total_bytes,
                coming=((flight.arrival.limit, flight.arrival.available) for flight in self._flights.values()),
                free=free,
                max_size=self._settings.max_size,
                min_free=self._settings.min_free,
            )
            victims = choose_victims(self._evictable(), needed)
            if victims is None:
                raise CacheFullError(
                    f"the cache has no room for {wanted} bytes more: {free} bytes are free on its file system, "
                    f"of which min_free keeps {self._settings.min_free}; max_size is {self._settings.max_size}"
                )
            for entry in victims:
                log.info("evicting a cached image", file=entry.file_name, bytes=entry.size)
            await self._discard(victims)
            self._evicted(len(victims))

    def _evictable(self) -> list[Entry]:
        return evictable(self._entries.values(), {sha256 for sha256, count in self._users.items() if count})

    async def _free_bytes(self) -> int:
        try:
            status = await trio.to_thread.run_sync(os.statvfs, self._directory)
        except OSError as error:
            raise CacheError(f"the cache directory cannot be used: {error.strerror}") from error
        return status.f_bavail * status.f_frsize

    async def _discard(self, entries: Sequence[Entry]) -> None:
        """Remove entries nobody uses. Out of sight before the first await: nobody begins to use them now."""
        for entry in entries:
            del self._entries[entry.sha256]
        if entries:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await self._in_thread(lambda files: files.remove(entries))

    # --- for the API ---

    def entries(self) -> list[Entry]:
        """All entries, most recently used first."""
        return sorted(self._entries.values(), key=lambda entry: entry.last_used_at, reverse=True)

    def path(self, entry: Entry) -> str:
        """Where the entry's file is."""
        return str(self._directory / entry.file_name)

    @property
    def total_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self._entries.values())

    async def remove(self, digest: str) -> Entry:
        """Remove the entry of ``sha256:HEX`` or bare hex. Raises NotFoundError; ConflictError while a job uses it."""
        async with self._changing:
            entry = self._get(digest)
            if self._users[entry.sha256]:
                raise ConflictError(f"the cached image {entry.file_name} is in use by a job")
            await self._discard([entry])
        return entry

    async def pin(self, digest: str, *, pinned: bool) -> Entry:
        """Keep the entry of ``sha256:HEX`` or bare hex from being evicted, or let go of it. Raises NotFoundError."""
        async with self._changing:
            entry = msgspec.structs.replace(self._get(digest), pinned=pinned)
            self._entries[entry.sha256] = entry
            await self._in_thread(lambda files: files.index.put(entry))
        return entry

    async def verify(self, digest: str) -> tuple[Entry, bool]:
        """Read the entry of ``sha256:HEX`` or bare hex anew: whether its bytes still have that digest.

        One that has not is removed; jobs that read it go on with what they opened. Raises NotFoundError.
        """
        entry = self._get(digest)
        with self._held(entry):
            intact = await trio.to_thread.run_sync(self._has_digest, entry)
        if not intact:
            log.error("a cached image has other bytes than its digest says", file=entry.file_name)
            async with self._changing:
                if self._entries.get(entry.sha256) is not None:
                    await self._discard([self._entries[entry.sha256]])
        return entry, intact

    def _has_digest(self, entry: Entry) -> bool:
        assert self._files is not None
        fd = self._files.open(entry)
        return fd is not None and digest_of(fd, trio.from_thread.check_cancelled) == entry.sha256

    @contextmanager
    def _held(self, entry: Entry) -> Iterator[None]:
        """Nobody evicts it meanwhile."""
        self._users[entry.sha256] += 1
        try:
            yield
        finally:
            self._users[entry.sha256] -= 1

    async def prune(self) -> list[Entry]:
        """Remove every entry that is neither pinned nor in use; what was removed."""
        async with self._changing:
            victims = self._evictable()
            await self._discard(victims)
        return victims

    async def check(self) -> str | None:
        """Why the cache cannot be used now, or None."""
        try:
            free = await self._free_bytes()
        except CacheError as error:
            return error.message
        return None if free > 0 else "cache directory: the file system is full"

    def _get(self, digest: str) -> Entry:
        entry = self._entries.get(digest.removeprefix("sha256:"))
        if entry is None:
            raise NotFoundError(f"no cached image has the checksum {digest}")
        return entry

    async def _in_thread(self, work: Callable[[CacheFiles], T]) -> T:
        """Work on files and index. Raises CacheError."""
        assert self._files is not None
        try:
            return await trio.to_thread.run_sync(work, self._files, limiter=self._thread)
        except OSError as error:
            raise as_provisioner_error(error) from error


def _resumable(expectation: Expectation) -> str | None:
    """What names the content for good; None where a later download could not tell that it is the same."""
    remote = expectation.remote
    sure = expectation.checksum is not None and remote.version is not None and remote.accepts_ranges and remote.size
    return expectation.flight_key if sure else None


def _report(what: str, file: str) -> None:
    log.info(what, file=file)
