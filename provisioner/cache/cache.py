"""The image cache: look-up, publishing, eviction and pins. Downloads under way are ``flights``'.

What always holds: an entry is published only after its digest matched; a published file never changes; an image
asked for twice at once is downloaded once; nothing that a job uses is evicted.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog
import trio

from provisioner.cache.entry import Entry, Expectation, bytes_over, choose_victims, evictable
from provisioner.cache.files import CacheFiles
from provisioner.cache.flight import as_provisioner_error
from provisioner.cache.flights import Flights
from provisioner.cache.handle import CachedImage, StoredImage
from provisioner.cache.unpacked import UnpackedImage
from provisioner.contracts.errors import CacheError, CacheFullError, ConflictError, NotFoundError
from provisioner.contracts.shield import shielded, undoing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from provisioner.cache.flight import Flight
    from provisioner.config import CacheSettings
    from provisioner.contracts import Checksum, ImageSource
    from provisioner.download.inspection import ImageInfo

log = structlog.get_logger(__name__)
T = TypeVar("T")


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
        self._evicted = evicted
        self._entries: dict[str, Entry] = {}
        self._urls: dict[str, tuple[str, str]] = {}
        self._users: Counter[str] = Counter()
        self._flights = Flights(settings, self._users, received, self.make_room, self._publish)
        self._files: CacheFiles | None = None
        # One thread at a time: SQLite's connection and the directory are shared.
        self._thread = trio.CapacityLimiter(1)
        # One at a time publishes or removes: what is decided on stays so until it is done.
        self._changing = trio.Lock()

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the cache and serve until cancelled. Raises CacheError where the directory cannot be used."""
        try:
            self._files = files = await trio.to_thread.run_sync(
                CacheFiles, self._directory, lambda what, file: log.info(what, file=file)
            )
        except OSError as error:
            raise CacheError(f"the cache directory {self._directory} cannot be used: {error.strerror}") from error
        self._entries, self._urls = files.entries, files.urls
        try:
            await self._flights.run(files.partials, task_status)
        finally:
            files.index.close()

    def stop(self) -> None:
        """What is given up from now on is carried on after the next start."""
        self._flights.stopping = True

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
        async with self._flights.aboard(source, expectation) as flight:
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
            return StoredImage(entry, fd, gives_back=self._settings.page_cache == "give-back")
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
            try:
                with undoing("close a cached image", 30):
                    await trio.to_thread.run_sync(stored.close)
            finally:
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
            with undoing("free the space of a decompressed image", 30):
                await trio.to_thread.run_sync(os.close, fd)  # in a thread: freeing a large file takes time

    async def _publish(self, flight: Flight, digests: dict[str, str], info: ImageInfo) -> None:
        async with self._changing:
            known, remote = self._entries.get(digests["sha256"]), flight.expectation.remote
            fd, partial = flight.arrival.fd, flight.partial
            entry = await self._in_thread(lambda files: files.publish(fd, partial, remote, digests, info, known))
            # Without an await from here on: the entry, and who uses it, appear at once.
            flight.entry = self._entries[entry.sha256] = entry
            self._users[entry.sha256] += flight.users
            if remote.version is not None:
                self._urls[remote.url] = (remote.version, entry.sha256)

    # --- room ---

    async def make_room(self, wanted: int) -> None:
        """Evict until ``wanted`` more bytes fit. Raises CacheFullError."""
        async with self._changing:
            free = await self._free_bytes()
            needed = bytes_over(
                wanted,
                stored=self.total_bytes,
                coming=self._flights.coming(),
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
            with shielded("remove images from the cache", 30):
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
        assert self._files is not None
        with self._held(entry):  # not with the one thread of ``_in_thread``: a large image takes its time
            intact = await trio.to_thread.run_sync(self._files.has_digest, entry, trio.from_thread.check_cancelled)
        if not intact:
            log.error("a cached image has other bytes than its digest says", file=entry.file_name)
            async with self._changing:
                if self._entries.get(entry.sha256) is not None:
                    await self._discard([self._entries[entry.sha256]])
        return entry, intact

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
