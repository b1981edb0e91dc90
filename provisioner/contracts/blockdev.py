"""Query, zero and discard block devices and files.

All functions block: call them in a thread. None opens or closes a descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING

from provisioner.contracts.source import pwrite_all

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/fs.h
BLKSSZGET = 0x1268
BLKGETSIZE64 = 0x80081272
BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F
# linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02

# Size limit of one request to the kernel; a cancel takes effect between two requests.
ZERO_STEP = 256 * 1024**2
_ZEROS = bytes(1024**2)
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def is_block_device(fd: int) -> bool:
    """Return whether ``fd`` is a block device; anything else is treated as a regular file."""
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def device_size(fd: int) -> int:
    """Return the size in bytes of a block device or a regular file."""
    if not is_block_device(fd):
        return os.fstat(fd).st_size
    return int(struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def logical_block_size(fd: int) -> int:
    """Return the device's sector size in bytes, which direct I/O must be aligned to; 512 for a regular file."""
    if not is_block_device(fd):
        return 512
    return int(struct.unpack("I", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])


def zero_range(fd: int, start: int, stop: int, check: Callable[[], None] = lambda: None) -> None:
    """Make ``[start, stop)`` read as zeros without changing the size.

    Uses BLKZEROOUT on a device and punches a hole into a file; writes zeros if that is unsupported.
    ``check`` is called between requests and may raise to stop. Raises OSError.
    """
    # The kernel zeroes whole blocks only: write the bytes before the first aligned block.
    aligned = min(stop, -(-start // 4096) * 4096)
    _write_zeros(fd, start, aligned, check)
    start = aligned
    while start < stop:
        check()
        step = min(ZERO_STEP, stop - start)
        if not _zero_with_help(fd, start, step):
            _write_zeros(fd, start, start + step, check)
        start += step


def is_blank(fd: int, check: Callable[[], None] = lambda: None) -> bool:
    """Return whether a device or file reads as zeros from end to end. Skips the holes of a file.

    ``check`` is called between reads and may raise to stop. Raises OSError.
    """
    position, end = 0, device_size(fd)
    while position < end:
        check()
        try:
            position = position if is_block_device(fd) else os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return True
            raise
        data = os.pread(fd, len(_ZEROS), position)
        if not data:
            return True
        if data != _ZEROS[: len(data)]:
            return False
        position += len(data)
    return True


def discard_range(fd: int, start: int, stop: int, check: Callable[[], None] = lambda: None) -> bool:
    """Discard ``[start, stop)`` of a block device. Return False if the device does not support discard.

    What the range reads as afterwards depends on the device: zeros on a thin volume, undefined on a disk.
    ``check`` is called between requests and may raise to stop. Raises OSError.
    """
    while start < stop:
        check()
        step = min(ZERO_STEP, stop - start)
        try:
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", start, step))
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        start += step
    return True


def _zero_with_help(fd: int, start: int, length: int) -> bool:
    try:
        if is_block_device(fd):
            if start % logical_block_size(fd) or length % logical_block_size(fd):
                return False
            fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", start, length))
        elif _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, length):
            raise OSError(ctypes.get_errno(), "fallocate")
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _write_zeros(fd: int, start: int, stop: int, check: Callable[[], None]) -> None:
    while start < stop:
        check()
        step = min(len(_ZEROS), stop - start)
        pwrite_all(fd, memoryview(_ZEROS)[:step], start)
        start += step
