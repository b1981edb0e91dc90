"""Opens images in the cache with the checksums that verify reads, records their use, and drops damaged ones."""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
import structlog
import trio

from provisioner.cache.files import sums_if_intact
from provisioner.cache.image import StoredImage
from provisioner.contracts.cancel_shield import undoing
from provisioner.contracts.errors import CacheError
from provisioner.contracts.threads import run_long
from provisioner.download.chunk_sums import ChunkChecker, fits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from provisioner.cache.catalog import Catalog
    from provisioner.cache.entry import Entry, Expectation
    from provisioner.cache.files import CacheFiles
    from provisioner.cache.space import Space

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Seconds within which further uses of an image are not recorded on disk. A commit flushes four times, a third of what a
# job with a cached image flushes; after a crash, the order of eviction is that old.
RECORD_EVERY = 60.0


class InThread(Protocol):
    """Runs short work on the cache's files, one at a time. Raises CacheError."""

    async def __call__(self, work: Callable[[CacheFiles], T]) -> T: ...


class StoredImages:
    """The published images of the cache, as jobs use them."""

    def __init__(
        self, catalog: Catalog, space: Space, in_thread: InThread, changing: trio.Lock, *, drops_pages: bool
    ) -> None:
        self._catalog, self._space, self._in_thread, self._changing = catalog, space, in_thread, changing
        self._drops_pages = drops_pages
        # When the last use of an image was recorded on disk, by sha256.
        self._recorded: dict[str, float] = {}

    async def open(self, expectation: Expectation) -> StoredImage | None:
        """Return the expected image, held against eviction until ``using`` ends; None if it is not in the cache."""
        remote = expectation.remote
        entry = self._catalog.find(expectation.checksum, remote.url.text, remote.version, expectation.may_use)
        if entry is None:
            return None
        self._catalog.users.hold(entry.sha256)  # before the first await, to prevent its eviction
        stored = None
        try:
            stored = await _open_stored(entry, self._in_thread, drops_pages=self._drops_pages)
        finally:
            if stored is None:
                self._catalog.users.release(entry.sha256)
        if stored is None:
            log.warning("a cached image was modified or removed on disk; downloading it again", file=entry.file_name)
            await self.drop(entry)
        return stored

    async def drop(self, entry: Entry) -> CacheError | None:
        """Stop using a damaged entry and remove it; return the error if that fails. Jobs keep open files open."""
        async with self._changing:
            current = self._catalog.get(entry.sha256)
            if current is None or current.mtime_ns != entry.mtime_ns:  # replaced in the meantime
                return None
            self._catalog.mark_damaged(current)
            _, failure = await self._space.remove([current])
            return failure

    @asynccontextmanager
    async def using(self, stored: StoredImage) -> AsyncIterator[None]:
        """Verify the image if needed, keep it while the context is open, and close it. Raises DamagedImageError."""
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
        if known is None or self._catalog.is_damaged(sha256):  # removed, or found damaged by another job
            return
        now = time.time()
        entry = msgspec.structs.replace(known, last_used_at=now)
        self._catalog.change(entry)
        if 0 <= now - self._recorded.get(sha256, 0.0) < RECORD_EVERY:
            return
        try:
            await self._in_thread(lambda files: files.index.put(entry))
            self._recorded[sha256] = now
            self._recorded = {sha: at for sha, at in self._recorded.items() if now - at < RECORD_EVERY}
        except CacheError as error:  # on a full disk, cached images remain usable
            log.warning(
                "the last use of a cached image could not be recorded", file=entry.file_name, reason=error.message
            )


async def _open_stored(entry: Entry, in_thread: InThread, *, drops_pages: bool) -> StoredImage | None:
    """Return an entry's opened image; None if its file is no longer the published one.

    If the entry has no chunk checksums yet, hash its file again and store them.
    """
    fd, sums = await in_thread(lambda files: files.open_checked(entry))
    if fd is None:
        return None
    try:
        if sums is None or not fits(sums, entry.size):
            sums = await _rehash(entry, fd, in_thread)
        checker = ChunkChecker(fd, entry.size, sums) if sums is not None else None
    except BaseException:
        os.close(fd)
        raise
    if checker is None:
        os.close(fd)
        return None
    return StoredImage(entry, fd, checker, drops_pages=drops_pages)


async def _rehash(entry: Entry, fd: int, in_thread: InThread) -> bytes | None:
    sums = await run_long(sums_if_intact, fd, entry.sha256, trio.from_thread.check_cancelled)
    if sums is not None:
        found = sums
        await in_thread(lambda files: files.index.put_sums(entry.sha256, found))
    return sums
