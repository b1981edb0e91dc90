"""Opens a published image, with the chunk checksums against which reads are verified."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from provisioner.cache.files import CacheFiles, sums_if_intact
from provisioner.cache.image import StoredImage
from provisioner.contracts.threads import run_long
from provisioner.download.chunk_sums import ChunkChecker, fits

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.cache.entry import Entry

T = TypeVar("T")


class InThread(Protocol):
    """Runs short work on the cache's files, one at a time. Raises CacheError."""

    async def __call__(self, work: Callable[[CacheFiles], T]) -> T: ...


async def open_stored(entry: Entry, in_thread: InThread, *, drops_pages: bool) -> StoredImage | None:
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
