"""Checksums of an image's chunks: made while its digest is, and compared whenever it is read again.

They tell rot: bytes that change on the disk, or a block that is lost, while size and times stay. CRC-32 misses one
damaged chunk in four thousand million. It is no defence against people, who are kept out by the file's permissions; in
return it costs little: 20 GB/s on one processor here, where SHA-256 makes 1.1.
"""

from __future__ import annotations

import errno
import os
import sys
from array import array
from typing import TYPE_CHECKING

from isal import isal_zlib

from provisioner.contracts.errors import CacheError, DamagedImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A single cluster that is read has its whole chunk read, once; of an image of 1 TiB the checksums take 16 MiB.
CHUNK = 256 * 1024
# What is read at a time where all of a file is checked.
_STEP = 4 * CHUNK
_ZEROS = bytes(CHUNK)


def crc(data: bytes | memoryview, before: int = 0) -> int:
    """The CRC-32 of ``data``, after bytes whose CRC-32 is ``before``."""
    return int(isal_zlib.crc32(data, before))


_ZERO_CHUNK = crc(_ZEROS)


class ChunkSummer:
    """Fed with a file's bytes from the first to the last. CPU only: feed it in a thread."""

    def __init__(self) -> None:
        self._sums = array("I")
        self._crc = 0
        self._filled = 0

    def feed(self, data: memoryview) -> None:
        """The next bytes."""
        at = 0
        while at < len(data):
            part = data[at : at + CHUNK - self._filled]
            self._crc = crc(part, self._crc)
            self._filled += len(part)
            at += len(part)
            if self._filled == CHUNK:
                self._sums.append(self._crc)
                self._crc = self._filled = 0

    def finish(self) -> bytes:
        """The checksums of all chunks, 32 bits each, in little endian."""
        if self._filled:
            self._sums.append(self._crc)
            self._crc = self._filled = 0
        return _little_endian(self._sums).tobytes()


class ChunkChecker:
    """Compares what is read of one open file with its checksums. From several threads at once; blocking.

    ``fd`` is the caller's. Raises CacheError if ``sums`` are not those of a file of ``size`` bytes.
    """

    def __init__(self, fd: int, size: int, sums: bytes) -> None:
        self._fd = fd
        self._size = size
        if not fits(sums, size):
            raise CacheError("the checksums of a cached image are of another length than the image")
        self._sums = _little_endian(array("I", sums))
        self._right = bytearray(len(self._sums))  # 1 for each chunk that was found right

    def check(self, start: int, data: memoryview) -> None:
        """Raise DamagedImageError unless ``data``, just read from ``start``, is what it should be.

        Of a chunk that is only in part in ``data`` the rest is read too, the first time.
        """
        stop = start + len(data)
        for index in range(start // CHUNK, -(-stop // CHUNK)):
            low, high = index * CHUNK, min((index + 1) * CHUNK, self._size)
            if start <= low and high <= stop:
                self._compare(index, crc(data[low - start : high - start]))
            elif not self._right[index]:
                inside = data[max(low - start, 0) : high - start]
                found = crc(self._read(low, start))
                found = crc(inside, found)
                self._compare(index, crc(self._read(stop, high), found))

    def check_zeros(self, start: int, stop: int) -> None:
        """Raise DamagedImageError unless the whole chunks in ``[start, stop)``, a hole in the file, should be zero."""
        first, last = -(-start // CHUNK), min(stop, self._size) // CHUNK
        whole = self._sums[first:last]
        if whole.count(_ZERO_CHUNK) < len(whole):  # quick: a hole may have millions of chunks
            index = next(number for number, found in enumerate(whole, first) if found != _ZERO_CHUNK)
            raise _damaged(index)
        rest = self._size - last * CHUNK
        if stop >= self._size and rest and start <= last * CHUNK:
            self._compare(last, crc(_ZEROS[:rest]))

    def check_all(self, check: Callable[[], None]) -> None:
        """Read the whole file, but for its holes. ``check`` is called between two reads and may raise to stop."""
        buffer = memoryview(bytearray(_STEP))
        done = 0
        for start, stop in self._data():
            self.check_zeros(done, start)
            # Whole chunks: the edges of a hole are in one with data.
            for at in range(start // CHUNK * CHUNK, stop, _STEP):
                check()
                length = min(_STEP, self._size - at, -(-(stop - at) // CHUNK) * CHUNK)
                self._read_into(buffer[:length], at)
                self.check(at, buffer[:length])
            done = stop
        self.check_zeros(done, self._size)

    def _data(self) -> Iterator[tuple[int, int]]:
        """``(start, stop)`` of each stretch of the file that is no hole."""
        # Seeking moves an offset, which must not be the caller's.
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            position = 0
            while position < self._size:
                try:
                    position = os.lseek(fd, position, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # only a hole follows
                        return
                    raise _unreadable(position) from error
                stop = os.lseek(fd, position, os.SEEK_HOLE)
                yield position, min(stop, self._size)
                position = stop
        finally:
            os.close(fd)

    def _compare(self, index: int, found: int) -> None:
        if found != self._sums[index]:
            raise _damaged(index)
        self._right[index] = 1

    def _read(self, start: int, stop: int) -> memoryview:
        data = memoryview(bytearray(max(0, stop - start)))
        self._read_into(data, start)
        return data

    def _read_into(self, into: memoryview, start: int) -> None:
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self._fd, [into[done:]], start + done)
            except OSError as error:
                raise _unreadable(start + done) from error
            if not got:
                raise DamagedImageError(f"the cached image ends at byte {start + done}")
            done += got


def _damaged(index: int) -> DamagedImageError:
    return DamagedImageError(f"the cached image is damaged near byte {index * CHUNK}")


def _unreadable(position: int) -> DamagedImageError:
    return DamagedImageError(f"the cached image cannot be read at byte {position}")


def fits(sums: bytes, size: int) -> bool:
    """Whether there are as many checksums as a file of ``size`` bytes has chunks."""
    return len(sums) == 4 * -(-size // CHUNK)


def _little_endian(sums: array[int]) -> array[int]:
    if sys.byteorder == "big":
        sums = sums[:]
        sums.byteswap()
    return sums
