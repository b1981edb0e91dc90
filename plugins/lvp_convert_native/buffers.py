"""Buffers for direct I/O, and fast zero detection in them."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

GRAIN = 64 * 1024
"""Zeros are looked for in grains of this size: a thin pool's chunk and a qcow2 cluster at their usual sizes."""

# Measured: 14 GB/s; comparing memoryviews does 0.25, comparing a copy as bytes 9. The GIL is kept: a
# grain takes 5 microseconds at most, and releasing it 16 times per MiB would make threads wait for each other.
_memcmp = ctypes.PyDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int
_ZEROS = mmap.mmap(-1, GRAIN)
_ZEROS_AT = ctypes.addressof(ctypes.c_char.from_buffer(_ZEROS))


# From ordinary pages the kernel builds requests of 512 KiB, from a huge page as large as the device accepts:
# a full raw image is written to a loop device in 0.73 of the time.
_HUGE = 2 * 1024**2


class Buffer:
    """The memory of one thread, in huge pages if available."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # the kernel has no huge pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        skipped = -address % _HUGE
        self._address = address + skipped
        self.view = memoryview(self._map)[skipped : skipped + size]

    def is_zero(self, start: int, stop: int) -> bool:
        """Return whether ``[start, stop)``, at most one grain, is all zeros."""
        return bool(_memcmp(self._address + start, _ZEROS_AT, stop - start) == 0)

    def extents(self, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield ``(start, stop, is_data)`` for the first ``length`` bytes, in whole grains."""
        start, was_data = 0, None
        for at in range(0, length, GRAIN):
            is_data = not self.is_zero(at, min(at + GRAIN, length))
            if is_data is not was_data and was_data is not None:
                yield start, at, was_data
                start = at
            was_data = is_data
        if was_data is not None:
            yield start, length, was_data
