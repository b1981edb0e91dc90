"""Space in the cache: evicts entries to make room, and removes them.

An entry counts until its file is gone. If the file cannot be removed, the entry stays listed and the caller gets an
error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.cache.eviction import bytes_over, choose_victims
from provisioner.contracts import MIB
from provisioner.contracts.cancel_shield import ShieldExpiredError, shielded
from provisioner.contracts.errors import CacheError, CacheFullError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from provisioner.cache.catalog import Catalog
    from provisioner.cache.entry import Entry
    from provisioner.cache.files import CacheFiles
    from provisioner.config import CacheSettings

    Removal = tuple[list[Entry], CacheError | None]
    InThread = Callable[[Callable[[CacheFiles], Removal]], Awaitable[Removal]]

log = structlog.get_logger(__name__)

# Seconds to remove files: this waits for other work on them, such as flushing a large image to a slow disk.
REMOVE_TIMEOUT = 30.0


class Space:
    """Chooses and removes entries. The caller serializes all changes of the cache.

    ``reserved`` yields (reserved, already written) of each download; ``evicted`` is called with the number of evicted
    images.
    """

    def __init__(
        self,
        directory: Path,
        settings: CacheSettings,
        catalog: Catalog,
        in_thread: InThread,
        reserved: Callable[[], Iterator[tuple[int, int]]],
        evicted: Callable[[int], None],
    ) -> None:
        self._directory = directory
        self._settings = settings
        self._catalog = catalog
        self._in_thread = in_thread
        self._reserved = reserved
        self._evicted = evicted

    async def make_room(
        self, size: int, already_written: int, left_over: Callable[[], int], sweep: Callable[[int], int]
    ) -> None:
        """Make room for a file of ``size`` bytes: remove partial files first, then images. Raises CacheFullError.

        ``already_written``: bytes of it on the disk. ``left_over`` returns the bytes of left-over partial files;
        ``sweep`` (blocking) frees that many of them.
        """
        needed, free = await self._needed(size, left_over(), already_written)
        if needed > 0 and left_over():
            await trio.to_thread.run_sync(sweep, needed)
            needed, free = await self._needed(size, left_over(), already_written)
        stuck: set[str] = set()
        failure: CacheError | None = None
        while needed > 0:
            candidates = [entry for entry in self._catalog.evictable() if entry.sha256 not in stuck]
            victims = choose_victims(candidates, needed)
            if victims is None:
                raise self._full(size, free, failure)
            gone, failure = await self.remove(victims)
            for entry in gone:
                log.info("evicted a cached image", file=entry.file_name, bytes=entry.size)
            self._evicted(len(gone))
            if failure is None:
                return
            stuck |= {entry.sha256 for entry in victims} - {entry.sha256 for entry in gone}
            needed, free = await self._needed(size, left_over(), already_written)

    async def check(self, size: int, left_over: int) -> None:
        """Raise CacheFullError if ``make_room`` would fail for ``size`` bytes now. Removes nothing."""
        needed, free = await self._needed(size, left_over)
        if choose_victims(self._catalog.evictable(), needed - left_over) is None:
            raise self._full(size, free, None)

    async def _needed(self, size: int, left_over: int, already_written: int = 0) -> tuple[int, int]:
        free = await self.free_bytes()
        needed = bytes_over(
            0,
            stored=self._catalog.total_bytes + left_over,
            reserved=[*self._reserved(), (size, already_written)],
            free=free,
            max_size=self._settings.max_size,
            min_free=self._settings.min_free,
        )
        return needed, free

    def _full(self, size: int, free: int, failure: CacheError | None) -> CacheFullError:
        return CacheFullError(
            f"the cache has no room for {size / MIB:.1f} MiB: its file system has {free / MIB:.1f} MiB free, "
            f"min_free is {self._settings.min_free} and max_size is {self._settings.max_size}"
            + (f"; {failure.message}" if failure is not None else "")
        )

    async def remove(self, entries: Sequence[Entry]) -> Removal:
        """Remove unused entries; return those whose files are gone, and the last error.

        The entries are hidden before the first await, so that no job starts to use them meanwhile.
        """
        if not entries:
            return [], None
        gone: list[Entry] = []
        failure: CacheError | None = None
        with self._catalog.removing(entries):
            try:
                with shielded("remove images from the cache", REMOVE_TIMEOUT):
                    gone, failure = await self._in_thread(lambda files: files.remove(entries))
            except ShieldExpiredError as error:  # the thread was busy with other work: nothing was removed
                failure = CacheError(error.message)
            except CacheError as error:
                failure = error
            self._forget(gone)
        return gone, failure

    def _forget(self, gone: Iterable[Entry]) -> None:
        for entry in gone:
            self._catalog.forget(entry)

    async def free_bytes(self) -> int:
        """Return the bytes free on the cache's file system. Raises CacheError."""
        try:
            status = await trio.to_thread.run_sync(os.statvfs, self._directory)
        except OSError as error:
            raise CacheError(f"the cache directory cannot be used: {error.strerror}") from error
        return status.f_bavail * status.f_frsize
