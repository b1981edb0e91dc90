"""The image cache: lookup, publishing, removal and pins. ``downloads`` has the downloads, ``space`` the eviction.

Invariants: an entry is published only after its digest matched; a published file never changes; concurrent requests for
an image share one download; an image in use is never evicted; an image is reported as removed only if its file is gone.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog
import trio

from provisioner.cache.catalog import Catalog
from provisioner.cache.decompressed import DecompressedImage
from provisioner.cache.download import as_provisioner_error
from provisioner.cache.downloads import Downloads
from provisioner.cache.files import CacheFiles
from provisioner.cache.publishing import Publisher
from provisioner.cache.space import Space
from provisioner.cache.stored_images import StoredImages
from provisioner.cache.upload_source import UploadSource
from provisioner.cache.uploads import Uploads
from provisioner.contracts.cancel_shield import ShieldExpiredError, shielded, undoing
from provisioner.contracts.errors import CacheError, ConflictError, DamagedImageError
from provisioner.contracts.threads import ThreadQueue, run_long

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from provisioner.cache.entry import Entry, Expectation
    from provisioner.cache.image import CachedImage
    from provisioner.cache.uploads import Upload
    from provisioner.config import CacheSettings
    from provisioner.contracts import Checksum, ImageSource, Signer
    from provisioner.download.inspection import ImageInfo
    from provisioner.signatures import Proof

log = structlog.get_logger(__name__)
T = TypeVar("T")

# Verifying reads whole images: two at once saturate a disk and leave processors for the jobs.
VERIFY_THREADS = 2
# Verifications that may wait; further requests are rejected.
VERIFY_QUEUE = 16
# Seconds to wait at the end for a look-up that hangs on the disk.
CLOSE_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed. ``freed`` is in bytes and includes partial downloads."""

    entries: list[Entry]
    freed: int


class ImageCache:
    """The cache of one directory. Downloads need ``run`` to be running."""

    def __init__(
        self,
        directory: Path,
        settings: CacheSettings,
        received: Callable[[int], None] = lambda _bytes: None,
        evicted: Callable[[int], None] = lambda _images: None,
        changed: Callable[[str, Entry], None] = lambda _what, _entry: None,
    ) -> None:
        """``changed`` is called with ``added``, ``removed``, ``pinned`` or ``unpinned`` and the entry."""
        self._directory = directory
        self._settings = settings
        self._changed = changed
        self._catalog = Catalog(settings.prewarm, changed)
        self._files: CacheFiles | None = None
        # One thread at a time, because the SQLite connection and the directory are shared.
        self._thread = trio.CapacityLimiter(1)
        # Held while publishing or removing, so that a decision stays valid until it is carried out.
        self._changing = trio.Lock()
        self._publisher = publisher = Publisher(self._catalog, self._in_thread, self._changing)
        self._downloads = Downloads(settings, self._catalog.users, received, self.make_room, publisher.download)
        self.uploads = Uploads(settings, self.make_room, publisher.upload)
        self.upload_source = UploadSource(self._catalog.latest_of)
        self._space = Space(directory, settings, self._catalog, self._in_thread, self._reserved, evicted)
        self._stored = StoredImages(
            self._catalog, self._space, self._in_thread, self._changing, drops_pages=settings.page_cache == "give-back"
        )
        self._verifying = ThreadQueue("verify cached images", threads=VERIFY_THREADS, most_waiting=VERIFY_QUEUE)

    # --- lifecycle ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the cache and serve until cancelled. Raises CacheError if the directory cannot be used."""
        try:
            self._files = files = await run_long(
                CacheFiles, self._directory, lambda what, file: log.info(what, file=file)
            )
        except OSError as error:
            raise CacheError(f"the cache directory {self._directory} cannot be used: {error.strerror}") from error
        try:
            self._catalog.load(files.entries, files.urls)
            self.uploads.partials = files.partials
            await self._downloads.run(files.partials, task_status)
        finally:
            await self._close(files)

    async def _close(self, files: CacheFiles) -> None:
        """Close the index in the thread of its other uses: a look-up may still run there, and SQLite would crash."""
        try:
            with shielded("close the cache's index", CLOSE_TIMEOUT):
                await trio.to_thread.run_sync(files.index.close, limiter=self._thread)
        except ShieldExpiredError as error:
            log.error("the cache's index was left open", reason=error.message)

    def stop(self) -> None:
        """Keep the files of downloads that are cancelled from now on, to resume them after the next start."""
        self._downloads.stopping = True

    @property
    def attempts(self) -> int:
        """Return the number of failed attempts in a row after which a server is given up."""
        return self._settings.download_attempts

    # --- lookup ---

    def find(
        self, checksum: Checksum | None, url: str, version: str | None, may_use: Callable[[str], bool] | None = None
    ) -> Entry | None:
        """Return the entry with that checksum or, without one, the entry of that url and server ``version``.

        ``may_use``: an entry is found by its checksum only if this returns True for one of its urls.
        """
        return self._catalog.find(checksum, url, version, may_use)

    def urls_of(self, entry: Entry) -> set[str]:
        """Return the urls that are known to have served the entry."""
        return self._catalog.urls_of(entry)

    @asynccontextmanager
    async def image(self, source: ImageSource, expectation: Expectation) -> AsyncIterator[CachedImage]:
        """Provide the image, cached or downloading; it is not evicted while the context is open.

        Leaving the context early cancels the download, unless another job uses it too. Leaving it with
        DamagedImageError drops the image, so the next call downloads it again.
        """
        stored = await self._stored.open(expectation)
        if stored is not None:
            try:
                async with self._stored.using(stored):
                    yield stored
            except DamagedImageError as error:
                log.error("a cached image is damaged", file=stored.entry.file_name, reason=error.message)
                await self._stored.drop(stored.entry)
                raise
            return
        async with self._downloads.join(source, expectation) as download:
            yield download

    @asynccontextmanager
    async def decompressed(self, image: CachedImage, info: ImageInfo, limit: int) -> AsyncIterator[DecompressedImage]:
        """Provide a compressed image decompressed, at most ``limit`` bytes; free its disk space at the end."""
        fd = await self._in_thread(lambda files: files.partials.scratch())
        try:
            yield DecompressedImage(image, info, fd, limit, self._settings.min_free)
        finally:
            with undoing("free the disk space of a decompressed image", 30):
                await trio.to_thread.run_sync(os.close, fd)  # in a thread: freeing a large file takes time

    async def prove(self, image: CachedImage, proof: Proof) -> Signer:
        """Return who signed the image; see ``Publisher.prove``."""
        return await self._publisher.prove(image, proof)

    async def note_signature(self, sha256: str, signer: Signer, proof: Proof) -> None:
        """Record who signed a cached image."""
        await self._publisher.note_signature(sha256, signer, proof)

    async def use_cached(self, upload: Upload, may_use: Callable[[str], bool] | None) -> Entry | None:
        """Give a cached image the name of an upload; see ``Publisher.use_cached``."""
        return await self._publisher.use_cached(upload, may_use)

    async def make_room(self, size: int, already_written: int = 0) -> None:
        """Evict until ``size`` bytes fit, ``already_written`` of which are on the disk. Raises CacheFullError."""
        async with self._changing:
            await self._space.make_room(size, already_written, self._downloads.left_over, self._downloads.sweep)

    def _reserved(self) -> Iterator[tuple[int, int]]:
        return chain(self._downloads.reserved(), self.uploads.reserved())

    async def check_room(self, size: int) -> None:
        """Raise CacheFullError if ``size`` more bytes do not fit even after evictions. Evicts nothing."""
        await self._space.check(size, self._downloads.left_over())

    # --- for the API ---

    def entries(self) -> list[Entry]:
        """Return all entries, most recently used first."""
        return self._catalog.recent()

    def prewarmed(self) -> set[str]:
        """Return the digests (bare SHA-256) of the images that are pinned because the configuration prewarms them."""
        return self._catalog.prewarmed()

    def resolved(self, name: str, url: str, checksum: Checksum | None) -> None:
        """Record what the name of an image to prewarm stands for now: that image is pinned from now on."""
        self._catalog.resolved(name, url, checksum)

    def path(self, entry: Entry) -> str:
        """Return the path of the entry's file."""
        return str(self._directory / entry.file_name)

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all entries and of partial downloads left behind."""
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
        """Set or remove a caller's own pin of the entry of ``sha256:HEX`` or bare hex. Raises NotFoundError.

        An image that the configuration prewarms is not evicted either way.
        """
        async with self._changing:
            entry = msgspec.structs.replace(self._catalog.named(digest), pinned=pinned)
            await self._in_thread(lambda files: files.index.put(entry))
            self._catalog.change(entry)
        self._changed("pinned" if pinned else "unpinned", entry)
        return entry

    async def verify(self, digest: str) -> tuple[Entry, bool]:
        """Read the file of ``sha256:HEX`` or bare hex again; return its entry and whether the digest still matches.

        If not, the entry is removed; jobs that have the file open keep it. Raises NotFoundError, TooManyRequestsError,
        and CacheError if a damaged file cannot be removed; the entry is not used again even then.
        """
        entry = self._catalog.named(digest)
        assert self._files is not None
        with self._held(entry):
            sums = await self._verifying.run(self._files.sums_of, entry, trio.from_thread.check_cancelled)
            if sums is not None:
                await self._in_thread(lambda files: files.index.put_sums(entry.sha256, sums))
        intact = sums is not None
        if not intact:
            log.error("a cached image does not match its digest", file=entry.file_name)
            failure = await self._stored.drop(entry)
            if failure is not None:
                raise failure
        return entry, intact

    @contextmanager
    def _held(self, entry: Entry) -> Iterator[None]:
        """Prevent the entry's eviction while the context is open."""
        self._catalog.users.hold(entry.sha256)
        try:
            yield
        finally:
            self._catalog.users.release(entry.sha256)

    async def prune(self) -> Pruned:
        """Remove all entries that are neither pinned nor in use, and all partial downloads left behind.

        Raises CacheError if a file could not be removed; the others are removed anyway.
        """
        async with self._changing:
            gone, failure = await self._space.remove(self._catalog.evictable())
            freed = sum(entry.size for entry in gone) + await run_long(self._downloads.sweep_all)
        if failure is not None:
            raise CacheError(f"{failure.message}; {len(gone)} other images were removed")
        return Pruned(gone, freed)

    async def check(self) -> str | None:
        """Return why the cache is unusable, or None."""
        try:
            free = await self._space.free_bytes()
        except CacheError as error:
            return error.message
        return None if free > 0 else "cache directory: the file system is full"

    async def _in_thread(self, work: Callable[[CacheFiles], T]) -> T:
        """Run ``work`` on the files and the index, in the shared thread. Raises CacheError."""
        assert self._files is not None
        try:
            return await trio.to_thread.run_sync(work, self._files, limiter=self._thread)
        except OSError as error:
            raise as_provisioner_error(error) from error
