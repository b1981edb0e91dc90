"""The image cache: look-up, single flight, publishing, eviction and pins.

What always holds: an entry is published only after its digest matched; a published file never changes; an image
asked for twice at once is downloaded once; nothing that a job uses is evicted.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from provisioner.cache import index as index_module
from provisioner.cache.entry import Entry, Expectation, choose_victims, evictable, file_name
from provisioner.cache.flight import Flight
from provisioner.cache.handle import CachedImage, StoredImage
from provisioner.contracts.errors import CacheError, CacheFullError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from provisioner.config import CacheSettings
    from provisioner.contracts import Checksum, ImageSource
    from provisioner.download.inspection import ImageInfo

log = structlog.get_logger(__name__)


class ImageCache:
    """Owns the cache directory. ``run`` must be running for anything to be downloaded."""

    def __init__(
        self, directory: Path, settings: CacheSettings, received: Callable[[int], None] = lambda _count: None
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._received = received
        self._entries: dict[str, Entry] = {}
        self._urls: dict[str, tuple[str, str]] = {}
        self._users: Counter[str] = Counter()
        self._flights: dict[str, Flight] = {}
        self._nursery: trio.Nursery | None = None
        self._index: index_module.Index | None = None
        # One thread at a time: SQLite's connection and the directory are shared.
        self._thread = trio.CapacityLimiter(1)
        self._making_room = trio.Lock()

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the cache and serve until cancelled. Raises CacheError where the directory cannot be used."""
        try:
            await trio.to_thread.run_sync(self._open)
        except OSError as error:
            raise CacheError(f"the cache directory {self._directory} cannot be used: {error.strerror}") from error
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            if self._index is not None:
                self._index.close()

    def _open(self) -> None:
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._index = index_module.Index(self._directory)
        index_module.discard_partials(self._directory, lambda name: log.info("removed a broken download", file=name))
        self._entries, self._urls = self._index.load()
        for entry in self._index.adopt(self._entries, time.time()):
            self._entries[entry.sha256] = entry
            log.info("took an image file back into the index", file=entry.file_name)

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
        try:
            fd = await trio.to_thread.run_sync(self._open_entry, entry)
        except BaseException:
            self._users[entry.sha256] -= 1
            raise
        if fd is None:
            self._users[entry.sha256] -= 1
            log.warning("a cached image was changed or removed; it is downloaded again", file=entry.file_name)
            await self._forget(entry)
            return None
        return StoredImage(entry, fd)

    def _open_entry(self, entry: Entry) -> int | None:
        if not index_module.is_intact(self._directory, entry):
            return None
        return os.open(self._directory / entry.file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

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
        entry = msgspec.structs.replace(self._entries[sha256], last_used_at=time.time())
        self._entries[sha256] = entry
        await self._write(lambda index: index.put(entry))

    # --- downloads ---

    async def _take_off(self, source: ImageSource, expectation: Expectation) -> Flight:
        await self.make_room(expectation.remote.size)
        waiting = self._flights.get(expectation.flight_key)  # another job may have been quicker
        if waiting is not None:
            return waiting
        assert self._nursery is not None
        partial = self._directory / ".lvp" / "partial" / secrets.token_hex(8)
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        flight = Flight(source, expectation, fd, str(partial))
        flight.arrival.limit = self._settings.max_size
        self._flights[expectation.flight_key] = flight
        self._nursery.start_soon(self._fly, flight)
        return flight

    async def _fly(self, flight: Flight) -> None:
        try:
            await flight.run(self._settings.download_attempts, self._received, self._publish)
        finally:  # without an await up to its end: whoever sees the flight ended sees the entry, too
            if self._flights.get(flight.expectation.flight_key) is flight:
                del self._flights[flight.expectation.flight_key]
            if flight.entry is None:
                Path(flight.partial).unlink(missing_ok=True)  # noqa: ASYNC240 - must happen on every way out
            else:
                self._entries[flight.entry.sha256] = flight.entry
                self._users[flight.entry.sha256] += flight.users

    @asynccontextmanager
    async def _aboard(self, flight: Flight) -> AsyncIterator[None]:
        flight.users += 1
        try:
            yield
        finally:
            flight.users -= 1
            if flight.entry is not None:
                self._users[flight.entry.sha256] -= 1
            elif not flight.users and not flight.ended.is_set():
                self._flights.pop(flight.expectation.flight_key, None)  # nobody may board it any more
                flight.scope.cancel(reason="nobody waits for this download any more")
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                    await flight.ended.wait()
            if not flight.users:
                flight.close()

    async def _publish(self, flight: Flight, digests: dict[str, str], info: ImageInfo) -> Entry:
        return await trio.to_thread.run_sync(self._publish_file, flight, digests, info, limiter=self._thread)

    def _publish_file(self, flight: Flight, digests: dict[str, str], info: ImageInfo) -> Entry:
        """The file's bytes on disk, read-only, under its final name, in the index."""
        fd, url = flight.arrival.fd, flight.expectation.remote.url
        os.fsync(fd)
        os.fchmod(fd, 0o444)
        status, now = os.fstat(fd), time.time()
        known = self._entries.get(digests["sha256"])
        if known is None or not index_module.is_intact(self._directory, known):
            known = Entry(
                sha256=digests["sha256"],
                sha512=digests.get("sha512"),
                file_name=file_name(url, digests["sha256"], info.format),
                size=status.st_size,
                mtime_ns=status.st_mtime_ns,
                format=info.format,
                virtual_size=info.virtual_size if info.virtual_size is not None else status.st_size,
                url=url,
                added_at=now,
                last_used_at=now,
            )
            Path(flight.partial).replace(self._directory / known.file_name)
            _sync_directory(self._directory)
        else:
            Path(flight.partial).unlink()
            known = msgspec.structs.replace(known, last_used_at=now, sha512=known.sha512 or digests.get("sha512"))
        index, version = self._index, flight.expectation.remote.version
        assert index is not None
        index.put(known)
        if version is not None:
            index.put_url(url, version, known.sha256)
            self._urls[url] = (version, known.sha256)
        return known

    # --- room ---

    async def make_room(self, size: int | None) -> None:
        """Evict until an image of ``size`` bytes fits (None: as if it were empty). Raises CacheFullError."""
        async with self._making_room:
            wanted = size or 0
            coming = sum((f.size or 0) - f.arrival.available for f in self._flights.values())
            free = await trio.to_thread.run_sync(_free_bytes, self._directory)
            stored = sum(entry.size for entry in self._entries.values())
            over_size = stored + coming + wanted - self._settings.max_size
            over_free = coming + wanted + self._settings.min_free - free
            victims = choose_victims(evictable(self._entries.values(), self._in_use()), max(over_size, over_free))
            if victims is None:
                raise CacheFullError(
                    f"the cache has no room for an image of {wanted} bytes: "
                    f"{free} bytes are free on its file system, max_size is {self._settings.max_size}"
                )
            for entry in victims:
                log.info("evicting a cached image", file=entry.file_name, bytes=entry.size)
                await self._delete(entry)

    def _in_use(self) -> set[str]:
        return {sha256 for sha256, count in self._users.items() if count}

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
        entry = self._entries.get(digest.removeprefix("sha256:"))
        if entry is None:
            raise NotFoundError(f"no cached image has the checksum {digest}")
        if self._users[entry.sha256]:
            raise ConflictError(f"the cached image {entry.file_name} is in use by a job")
        await self._delete(entry)
        return entry

    async def prune(self) -> list[Entry]:
        """Remove every entry that is neither pinned nor in use; what was removed."""
        victims = evictable(self._entries.values(), self._in_use())
        for entry in victims:
            if not self._users[entry.sha256]:
                await self._delete(entry)
        return victims

    async def check(self) -> str | None:
        """Why the cache cannot be used now, or None."""
        try:
            free = await trio.to_thread.run_sync(_free_bytes, self._directory)
        except OSError as error:
            return f"cache directory: {error.strerror}"
        return None if free > 0 else "cache directory: the file system is full"

    async def _delete(self, entry: Entry) -> None:
        self._entries.pop(entry.sha256, None)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await trio.to_thread.run_sync(lambda: (self._directory / entry.file_name).unlink(missing_ok=True))
            await self._write(lambda index: index.remove(entry.sha256))

    async def _forget(self, entry: Entry) -> None:
        self._entries.pop(entry.sha256, None)
        await self._write(lambda index: index.remove(entry.sha256))

    async def _write(self, change: Callable[[index_module.Index], None]) -> None:
        index = self._index
        assert index is not None
        await trio.to_thread.run_sync(change, index, limiter=self._thread)


def _free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
