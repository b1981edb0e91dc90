"""The image cache: look-up, publishing, removal and pins. Downloads under way are ``downloads``', room is ``space``'s.

What always holds: an entry is published only after its digest matched; a published file never changes; an image
asked for twice at once is downloaded once; nothing that a job uses is evicted; nothing is reported as removed whose
file is still there.
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog
import trio

from provisioner.cache.catalog import Catalog
from provisioner.cache.decompressed import DecompressedImage
from provisioner.cache.download import as_provisioner_error
from provisioner.cache.downloads import Downloads
from provisioner.cache.files import CacheFiles
from provisioner.cache.space import Space
from provisioner.cache.stored import open_stored
from provisioner.contracts.errors import CacheError, ConflictError, DamagedImageError
from provisioner.contracts.shield import undoing
from provisioner.contracts.threads import ThreadQueue, run_long

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from provisioner.cache.download import Download
    from provisioner.cache.entry import Entry, Expectation
    from provisioner.cache.image import CachedImage, StoredImage
    from provisioner.config import CacheSettings
    from provisioner.contracts import Checksum, ImageSource
    from provisioner.download.hashing import Hashes
    from provisioner.download.inspection import ImageInfo

log = structlog.get_logger(__name__)
T = TypeVar("T")

# Verifying reads whole images: two at once are as fast as a disk is, and leave processors to the jobs.
VERIFY_THREADS = 2
# Further ones wait; more than this are refused.
VERIFY_QUEUE = 16


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed; ``freed`` in bytes, with the remains of broken downloads."""

    entries: list[Entry]
    freed: int


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
        self._catalog = Catalog()
        self._downloads = Downloads(settings, self._catalog.users, received, self.make_room, self._publish)
        self._space = Space(directory, settings, self._catalog, self._in_thread, self._downloads.reserved, evicted)
        self._files: CacheFiles | None = None
        # One thread at a time: SQLite's connection and the directory are shared.
        self._thread = trio.CapacityLimiter(1)
        # One at a time publishes or removes: what is decided on stays so until it is done.
        self._changing = trio.Lock()
        self._verifying = ThreadQueue("verify cached images", threads=VERIFY_THREADS, most_waiting=VERIFY_QUEUE)

    # --- life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the cache and serve until cancelled. Raises CacheError where the directory cannot be used."""
        try:
            self._files = files = await run_long(
                CacheFiles, self._directory, lambda what, file: log.info(what, file=file)
            )
        except OSError as error:
            raise CacheError(f"the cache directory {self._directory} cannot be used: {error.strerror}") from error
        self._catalog.load(files.entries, files.urls)
        try:
            await self._downloads.run(files.partials, task_status)
        finally:
            files.index.close()

    def stop(self) -> None:
        """What is given up from now on is carried on after the next start."""
        self._downloads.stopping = True

    @property
    def attempts(self) -> int:
        """How often a server is asked in a row that gives nothing."""
        return self._settings.download_attempts

    # --- look-up ---

    def find(
        self, checksum: Checksum | None, url: str, version: str | None, may_use: Callable[[str], bool] | None = None
    ) -> Entry | None:
        """Return the entry for that content, or for that url as long as the server still calls it ``version``.

        ``may_use`` judges urls: content is found by its checksum only if one of the urls that led to it may be used.
        """
        return self._catalog.find(checksum, url, version, may_use)

    @asynccontextmanager
    async def image(self, source: ImageSource, expectation: Expectation) -> AsyncIterator[CachedImage]:
        """The image, from the cache or on its way into it, kept in place until the context is left.

        Leaving while it still comes gives the download up, unless another job waits for it too. Leaving it by
        DamagedImageError drops the image: the next call fetches it anew.
        """
        stored = await self._open_stored(expectation)
        if stored is not None:
            try:
                async with self._using(stored):
                    yield stored
            except DamagedImageError as error:
                log.error("a cached image is damaged", file=stored.entry.file_name, reason=error.message)
                await self._drop(stored.entry)
                raise
            return
        async with self._downloads.join(source, expectation) as download:
            yield download

    async def _open_stored(self, expectation: Expectation) -> StoredImage | None:
        remote = expectation.remote
        entry = self.find(expectation.checksum, remote.url.text, remote.version, expectation.may_use)
        if entry is None:
            return None
        self._catalog.users.hold(entry.sha256)  # before the first await, so that it is not evicted
        stored = None
        try:
            stored = await open_stored(entry, self._in_thread, drops_pages=self._settings.page_cache == "give-back")
        finally:
            if stored is None:
                self._catalog.users.release(entry.sha256)
        if stored is None:
            log.warning("a cached image was changed or removed; it is downloaded again", file=entry.file_name)
            await self._drop(entry)
        return stored

    async def _drop(self, entry: Entry) -> CacheError | None:
        """Never use an entry again, and remove it; why it could not be removed. Jobs that have it open keep it open."""
        async with self._changing:
            current = self._catalog.get(entry.sha256)
            if current is None or current.mtime_ns != entry.mtime_ns:  # replaced meanwhile
                return None
            self._catalog.mark_damaged(current)
            _, failure = await self._space.remove([current])
            return failure

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
                self._catalog.users.release(entry.sha256)

    async def _touch(self, sha256: str) -> None:
        known = self._catalog.get(sha256)
        if known is None or self._catalog.is_damaged(sha256):  # another job has just found it changed
            return
        entry = msgspec.structs.replace(known, last_used_at=time.time())
        self._catalog.change(entry)
        try:
            await self._in_thread(lambda files: files.index.put(entry))
        except CacheError as error:  # on a full disk what is cached can still be used
            log.warning("the use of a cached image could not be noted", file=entry.file_name, reason=error.message)

    @asynccontextmanager
    async def decompressed(self, image: CachedImage, info: ImageInfo, limit: int) -> AsyncIterator[DecompressedImage]:
        """The inside of a compressed image, at most ``limit`` bytes; its disk space is given back at the end."""
        fd = await self._in_thread(lambda files: files.partials.scratch())
        try:
            yield DecompressedImage(image, info, fd, limit, self._settings.min_free)
        finally:
            with undoing("free the space of a decompressed image", 30):
                await trio.to_thread.run_sync(os.close, fd)  # in a thread: freeing a large file takes time

    async def _publish(self, download: Download, hashes: Hashes, info: ImageInfo) -> None:
        sha256 = hashes.digests["sha256"]
        fd, partial, remote = download.growing_file.fd, download.partial, download.expectation.remote
        # Before the one thread is taken: a large image on a slow disk would keep all others from it.
        await run_long(os.fsync, fd)
        async with self._changing:
            known, damaged = self._catalog.get(sha256), self._catalog.is_damaged(sha256)
            entry = await self._in_thread(
                lambda files: files.publish(fd, partial, remote, hashes, info, known, damaged=damaged)
            )
            # Without an await from here on: the entry, and who uses it, appear at once.
            download.entry = entry
            self._catalog.add(entry, remote.url.text, remote.version)
            self._catalog.users.hold(entry.sha256, download.users)

    async def make_room(self, wanted: int) -> None:
        """Evict until ``wanted`` more bytes fit. Raises CacheFullError."""
        async with self._changing:
            await self._space.make(wanted, self._downloads.left_over, self._downloads.sweep)

    # --- for the API ---

    def entries(self) -> list[Entry]:
        """All entries, most recently used first."""
        return self._catalog.recent()

    def path(self, entry: Entry) -> str:
        """Where the entry's file is."""
        return str(self._directory / entry.file_name)

    @property
    def total_bytes(self) -> int:
        """Bytes of all entries, and of what broken downloads left."""
        return self._catalog.total_bytes + self._downloads.left_over()

    async def remove(self, digest: str) -> Entry:
        """Remove the entry of ``sha256:HEX`` or bare hex.

        Raises NotFoundError; ConflictError while a job uses it; CacheError if its file cannot be removed.
        """
        async with self._changing:
            entry = self._catalog.named(digest)
            if self._catalog.users[entry.sha256]:
                raise ConflictError(f"the cached image {entry.file_name} is in use by a job")
            _, failure = await self._space.remove([entry])
        if failure is not None:
            raise failure
        return entry

    async def pin(self, digest: str, *, pinned: bool) -> Entry:
        """Keep the entry of ``sha256:HEX`` or bare hex from being evicted, or let go of it. Raises NotFoundError."""
        async with self._changing:
            entry = msgspec.structs.replace(self._catalog.named(digest), pinned=pinned)
            await self._in_thread(lambda files: files.index.put(entry))
            self._catalog.change(entry)
        return entry

    async def verify(self, digest: str) -> tuple[Entry, bool]:
        """Read the entry of ``sha256:HEX`` or bare hex anew: whether its bytes still have that digest.

        If not, it is removed; jobs that have it open keep it open. Raises NotFoundError, TooManyRequestsError, and
        CacheError if a damaged file cannot be removed; it is not used any more all the same.
        """
        entry = self._catalog.named(digest)
        assert self._files is not None
        with self._held(entry):
            sums = await self._verifying.run(self._files.sums_of, entry, trio.from_thread.check_cancelled)
            if sums is not None:
                await self._in_thread(lambda files: files.index.put_sums(entry.sha256, sums))
        intact = sums is not None
        if not intact:
            log.error("a cached image has other bytes than its digest says", file=entry.file_name)
            failure = await self._drop(entry)
            if failure is not None:
                raise failure
        return entry, intact

    @contextmanager
    def _held(self, entry: Entry) -> Iterator[None]:
        """Keep the entry from being evicted meanwhile."""
        self._catalog.users.hold(entry.sha256)
        try:
            yield
        finally:
            self._catalog.users.release(entry.sha256)

    async def prune(self) -> Pruned:
        """Remove every entry that is neither pinned nor in use, and what broken downloads left.

        Raises CacheError if a file could not be removed; the others are gone all the same.
        """
        async with self._changing:
            gone, failure = await self._space.remove(self._catalog.evictable())
            freed = sum(entry.size for entry in gone) + await run_long(self._downloads.sweep_all)
        if failure is not None:
            raise CacheError(f"{failure.message}; {len(gone)} other images were removed")
        return Pruned(gone, freed)

    async def check(self) -> str | None:
        """Why the cache cannot be used now, or None."""
        try:
            free = await self._space.free_bytes()
        except CacheError as error:
            return error.message
        return None if free > 0 else "cache directory: the file system is full"

    async def _in_thread(self, work: Callable[[CacheFiles], T]) -> T:
        """Work on files and index. Raises CacheError."""
        assert self._files is not None
        try:
            return await trio.to_thread.run_sync(work, self._files, limiter=self._thread)
        except OSError as error:
            raise as_provisioner_error(error) from error
