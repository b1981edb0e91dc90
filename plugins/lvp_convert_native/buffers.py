"""Buffers for direct I/O, and the quick look for zeros in them."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

GRAIN = 64 * 1024
"""Zeros are looked for in grains of this size: a thin pool's chunk and a qcow2 cluster at their usual sizes."""

# A call through ctypes lets go of the interpreter's lock: 14 GB/s here, where comparing memoryviews makes 0.25 and
# comparing a copy as bytes makes 9 with the lock held.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int
_ZEROS = mmap.mmap(-1, GRAIN)
_ZEROS_AT = ctypes.addressof(ctypes.c_char.from_buffer(_ZEROS))


class Buffer:
    """Page-aligned memory of one thread."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.view = memoryview(self._map)

    def is_zero(self, start: int, stop: int) -> bool:
        """Whether ``[start, stop)``, at most a grain, holds zeros only."""
        return bool(_memcmp(self._address + start, _ZEROS_AT, stop - start) == 0)

    def extents(self, length: int) -> Iterator[tuple[int, int, bool]]:
        """``(start, stop, is_data)`` over the first ``length`` bytes, in grains."""
        start, was_data = 0, None
        for at in range(0, length, GRAIN):
            is_data = not self.is_zero(at, min(at + GRAIN, length))
            if is_data is not was_data and was_data is not None:
                yield start, at, was_data
                start = at
            was_data = is_data
        if was_data is not None:
            yield start, length, was_data
