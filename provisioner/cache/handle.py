"""What a job holds of a cached image: its bytes, arriving or whole, its kind, and its verified digest."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import CorruptImageError
from provisioner.contracts.threads import run_long
from provisioner.download.inspection import ImageInfo
from provisioner.download.page_cache import BEHIND, STEP, give_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.cache.entry import Entry
    from provisioner.download.arrival import Arrival
    from provisioner.download.chunk_sums import ChunkChecker
    from provisioner.download.early import Early


class CachedImage(ABC):
    """An image in the cache, or on its way into it, held in place until its context is left.

    ``hit``: nothing had to be downloaded for it.
    """

    hit: bool

    @abstractmethod
    async def info(self) -> ImageInfo:
        """Format and virtual size, once the header is there. Raises UnsafeImageError and the download's errors."""

    @abstractmethod
    async def downloaded(self) -> None:
        """Return when every byte is in the file, verified or not. Raises the download's errors."""

    @abstractmethod
    async def verified(self) -> Entry:
        """The published entry, once the digest matched. Raises ChecksumMismatchError and the download's errors."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Length of the whole file in bytes; None while unknown."""

    @property
    @abstractmethod
    def available(self) -> int:
        """Bytes that are in the file."""

    @property
    @abstractmethod
    def fd(self) -> int:
        """The file, for ``os.pread`` only."""

    async def checked(self) -> None:
        """Compare all of a cached image with what was verified, before it is read. Raises DamagedImageError."""

    def check(self, start: int, data: memoryview) -> None:
        """Compare what was just read from ``start`` with what was verified. Blocking. Raises DamagedImageError."""

    async def arrived(self, start: int, stop: int) -> None:
        """Return when the bytes ``[start, stop)`` are in the file. Raises CorruptImageError where it ends before."""
        del start
        if self.size is not None and stop > self.size:
            raise CorruptImageError(f"the image ends at byte {self.size}, but byte {stop - 1} of it is needed")

    @abstractmethod
    def view(self, image_format: str, virtual_size: int) -> CacheView:
        """The view a converter reads. ``size`` must be known."""


class CacheView:
    """Implements contracts.ImageView over a descriptor; ``arrival`` and ``early`` are None for a file that is whole.

    ``checker`` is None for a file whose digest is made while it is read. ``gives_back``: what was read leaves the page
    cache.
    """

    def __init__(
        self,
        fd: int,
        image_format: str,
        size: int,
        virtual_size: int,
        arrival: Arrival | None = None,
        early: Early | None = None,
        *,
        checker: ChunkChecker | None = None,
        gives_back: bool = True,
    ) -> None:
        self._checker = checker
        self.fd = fd
        self.format = image_format
        self.size = size
        self.virtual_size = virtual_size
        self._arrival = arrival
        self._early = early
        self._gives_back = gives_back
        self._given_back = 0

    @property
    def available(self) -> int:
        return self.size if self._arrival is None else self._arrival.available

    async def arrived(self, start: int, stop: int) -> None:
        if self._arrival is not None:
            await self._arrival.arrived(start, stop)

    async def ahead(self, start: int, stop: int) -> bytes | None:
        return None if self._early is None else await self._early.read(start, stop)

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
        if not self._gives_back:
            return
        if self._arrival is None:
            give_back(self.fd, start, stop)
            return
        # Read in the file's order, and just written: what lies further back has reached the disk by now. But whoever
        # hashes may be further back still, and would have to read it from there.
        mark = min(start, self._arrival.hashed) - BEHIND
        if mark >= self._given_back + 4 * STEP:
            self._given_back = mark
            give_back(self.fd, 0, mark)


class StoredImage(CachedImage):
    """A published image, read through a descriptor of its own."""

    def __init__(self, entry: Entry, fd: int, checker: ChunkChecker, *, gives_back: bool = True) -> None:
        self.hit = True
        self.entry = entry
        self._gives_back = gives_back
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
            self._fd, image_format, self.entry.size, virtual_size, checker=self._checker, gives_back=self._gives_back
        )

    async def checked(self) -> None:
        await run_long(self._checker.check_all, trio.from_thread.check_cancelled)

    def check(self, start: int, data: memoryview) -> None:
        self._checker.check(start, data)

    def close(self) -> None:
        """Give back descriptor and memory. Blocking."""
        if self._gives_back:
            give_back(self._fd, 0, self.entry.size)
        os.close(self._fd)
