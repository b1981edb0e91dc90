"""A compressed image, decompressed for the converter into an unnamed file that is freed when it is closed."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import trio

from provisioner.cache.image import CachedImage, CacheView
from provisioner.contracts.errors import CorruptImageError
from provisioner.contracts.threads import run_long
from provisioner.download.decompress import decompress
from provisioner.download.inspection import ImageInfo

if TYPE_CHECKING:
    from provisioner.cache.entry import Entry


class DecompressedImage(CachedImage):
    """The decompressed content of ``compressed``. Decompression runs while the image is still downloading.

    ``limit``: maximum of decompressed bytes; ``min_free``: bytes to keep free on the file system of ``fd``.
    """

    def __init__(self, compressed: CachedImage, info: ImageInfo, fd: int, limit: int, min_free: int) -> None:
        assert info.compression is not None
        self.hit = compressed.hit
        self._compressed = compressed
        self._info = info
        self._compression = info.compression
        self._fd = fd
        self._limit = limit
        self._min_free = min_free
        self._size: int | None = None
        self._decompressing = trio.Lock()
        self.reader = CompressedReader(compressed)

    async def info(self) -> ImageInfo:
        return ImageInfo(self._info.format, self._info.virtual_size)

    async def downloaded(self) -> None:
        async with self._decompressing:
            if self._size is None:
                self._size = await run_long(self._decompress)

    def _decompress(self) -> int:
        check = trio.from_thread.check_cancelled
        return decompress(self._compression, self.reader, self._fd, self._limit, self._min_free, check)

    async def verified(self) -> Entry:
        return await self._compressed.verified()

    @property
    def size(self) -> int | None:
        return self._size

    @property
    def available(self) -> int:
        return self._size or 0

    def view(self, image_format: str, virtual_size: int) -> CacheView:
        assert self._size is not None
        return CacheView(self._fd, image_format, self._size, virtual_size)

    @property
    def fd(self) -> int:
        return self._fd


class CompressedReader(io.RawIOBase):
    """A stream over a cached image that blocks its thread until the next bytes have arrived."""

    def __init__(self, image: CachedImage) -> None:
        super().__init__()
        self._image = image
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        available = self._image.available
        if available <= self.position and not self._wait():
            return 0
        wanted = min(len(buffer), self._image.available - self.position)
        got = os.preadv(self._image.fd, [memoryview(buffer)[:wanted]], self.position)
        self._image.check(self.position, memoryview(buffer)[:got])
        self.position += got
        return got

    def _wait(self) -> bool:
        """Wait for the next byte; return whether there is one. A cancel of the thread's task interrupts it."""
        if self._image.size is not None and self.position >= self._image.size:
            return False
        try:
            trio.from_thread.run(self._image.arrived, self.position, self.position + 1)
        except CorruptImageError:  # end of file
            return False
        return True
