"""A cached image as a job sees it, complete or still downloading: its bytes, its format and its verified entry."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import CorruptImageError
from provisioner.contracts.threads import run_long
from provisioner.download.inspection import ImageInfo
from provisioner.download.page_cache import BEHIND, STEP, drop_pages
from provisioner.download.vhd_footer import FOOTER, disk_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.cache.entry import Entry
    from provisioner.download.chunk_sums import ChunkChecker
    from provisioner.download.growing_file import GrowingFile
    from provisioner.download.read_ahead import ReadAhead


class CachedImage(ABC):
    """An image that is cached or downloading, and not evicted while its context is open.

    ``hit``: it was cached already.
    """

    hit: bool

    @abstractmethod
    async def info(self) -> ImageInfo:
        """Return format and virtual size when the header has arrived. Raises UnsafeImageError, download errors."""

    @abstractmethod
    async def downloaded(self) -> None:
        """Return when all bytes are in the file, verified or not. Raises the download's errors."""

    @abstractmethod
    async def verified(self) -> Entry:
        """Return the published entry when the digest matched. Raises ChecksumMismatchError, download errors."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Return the length of the complete file in bytes; None while unknown."""

    @property
    @abstractmethod
    def available(self) -> int:
        """Return the number of bytes in the file so far."""

    @property
    @abstractmethod
    def fd(self) -> int:
        """Return the file's descriptor, for ``os.pread`` only."""

    @property
    def waiting_for(self) -> str | None:
        """Return the last temporary error while the source is asked again, or None."""
        return None

    async def checked(self) -> None:
        """Verify a whole cached image against its checksums before it is read. Raises DamagedImageError."""

    def check(self, start: int, data: memoryview) -> None:
        """Verify ``data``, just read from ``start``, against the checksums. Blocking. Raises DamagedImageError."""

    async def disk_bytes(self) -> int:
        """Return how many bytes of a raw image that has arrived in full are its disk, without a VHD's footer."""
        return await run_long(self._disk_bytes)

    def _disk_bytes(self) -> int:
        assert self.size is not None
        start = max(0, self.size - FOOTER)
        end = os.pread(self.fd, FOOTER, start)
        self.check(start, memoryview(end))
        return disk_bytes(end, self.size)

    async def arrived(self, start: int, stop: int) -> None:
        """Return when the bytes ``[start, stop)`` are in the file. Raises CorruptImageError if it ends before."""
        del start
        if self.size is not None and stop > self.size:
            raise CorruptImageError(f"the image ends at byte {self.size}, but byte {stop - 1} is needed")

    @abstractmethod
    def view(self, image_format: str, virtual_size: int) -> CacheView:
        """Return the view for a converter. ``size`` must be known."""


class CacheView:
    """The contracts.ImageView of a file. ``growing_file`` and ``read_ahead`` are None for a complete file.

    ``checker`` is None for a file whose digest is still being computed. ``drops_pages``: drop pages from the page cache
    after they were read.
    """

    def __init__(
        self,
        fd: int,
        image_format: str,
        size: int,
        virtual_size: int,
        growing_file: GrowingFile | None = None,
        read_ahead: ReadAhead | None = None,
        *,
        checker: ChunkChecker | None = None,
        drops_pages: bool = True,
    ) -> None:
        self._checker = checker
        self.fd = fd
        self.format = image_format
        self.size = size
        self.virtual_size = virtual_size
        self._growing_file = growing_file
        self._read_ahead = read_ahead
        self._drops_pages = drops_pages
        self._dropped_to = 0

    @property
    def available(self) -> int:
        return self.size if self._growing_file is None else self._growing_file.available

    async def arrived(self, start: int, stop: int) -> None:
        if self._growing_file is not None:
            await self._growing_file.arrived(start, stop)

    async def ahead(self, start: int, stop: int) -> bytes | None:
        return None if self._read_ahead is None else await self._read_ahead.read(start, stop)

    def check(self, start: int, data: memoryview) -> None:
        if self._checker is not None:
            self._checker.check(start, data)

    def check_zeros(self, start: int, stop: int) -> None:
        if self._checker is not None:
            self._checker.check_zeros(start, stop)

    def check_all(self, check: Callable[[], None]) -> None:
        if self._checker is not None:
            self._checker.check_all(check)

    def spent(self, start: int, stop: int) -> None:
        if not self._drops_pages:
            return
        if self._growing_file is None:
            drop_pages(self.fd, start, stop)
            return
        # The file is read in order, so pages BEHIND the reader have reached the disk. But the hashing thread may lag
        # further behind, and must not have to read them from disk.
        mark = min(start, self._growing_file.hashed) - BEHIND
        if mark >= self._dropped_to + 4 * STEP:
            self._dropped_to = mark
            drop_pages(self.fd, 0, mark)


class StoredImage(CachedImage):
    """A published image with its own file descriptor."""

    def __init__(self, entry: Entry, fd: int, checker: ChunkChecker, *, drops_pages: bool = True) -> None:
        self.hit = True
        self.entry = entry
        self._drops_pages = drops_pages
        self._checker = checker
        self._fd = fd

    async def info(self) -> ImageInfo:
        entry = self.entry
        return ImageInfo(entry.format, None if entry.format == "raw" else entry.virtual_size, entry.compression)

    async def downloaded(self) -> None:
        return

    async def verified(self) -> Entry:
        return self.entry

    @property
    def size(self) -> int:
        return self.entry.size

    @property
    def available(self) -> int:
        return self.entry.size

    @property
    def fd(self) -> int:
        return self._fd

    def view(self, image_format: str, virtual_size: int) -> CacheView:
        return CacheView(
            self._fd, image_format, self.entry.size, virtual_size, checker=self._checker, drops_pages=self._drops_pages
        )

    async def checked(self) -> None:
        await run_long(self._checker.check_all, trio.from_thread.check_cancelled)

    def check(self, start: int, data: memoryview) -> None:
        self._checker.check(start, data)

    def close(self) -> None:
        """Close the file and drop its pages. Blocking."""
        if self._drops_pages:
            drop_pages(self._fd, 0, self.entry.size)
        os.close(self._fd)
