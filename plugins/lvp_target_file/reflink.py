"""Shares blocks between files (reflinks, as XFS and btrfs have them) and counts those that are not shared. Blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING

from lvp_target_file.disk import opened

if TYPE_CHECKING:
    from pathlib import Path

# linux/fs.h
_FICLONE = 0x40049409
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_NOCOW_FL = 0x00800000
_FS_IOC_FIEMAP = 0xC020660B
# linux/fiemap.h: start, length, flags, mapped extents, room for extents
_MAP = struct.Struct("=QQIII4x")
# logical, physical, length, flags
_EXTENT = struct.Struct("=QQQ16xI12x")
_LAST, _SHARED = 0x1, 0x2000
_EXTENTS = 512

_BLOCK = bytes(4096)
# The file system has no reflinks. Other errors, such as a full disk, say nothing about it.
_NO_REFLINKS = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EXDEV}


def clone(source: int, fd: int) -> None:
    """Give the empty file ``fd`` the content of ``source``, whose blocks both then share. Raises OSError."""
    _match_nocow(source, fd)
    fcntl.ioctl(fd, _FICLONE, source)


def are_supported(folder: Path) -> bool:
    """Try whether files in ``folder`` can share blocks. Leaves nothing behind. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as copy:
        source.write(_BLOCK)
        source.flush()
        try:
            clone(source.fileno(), copy.fileno())
        except OSError as error:
            if error.errno in _NO_REFLINKS:
                return False
            raise
    return True


def own_bytes(path: Path) -> int:
    """Return the bytes that a removal of the file would free: those of data that it does not share.

    ``st_blocks`` counts a shared block for each file that has it, and blocks that XFS reserves for later writes. Raises
    OSError.
    """
    with opened(path, os.O_RDONLY) as fd:  # waits while ``holders`` has a lease on the file
        try:
            return _unshared_bytes(fd)
        except OSError as error:
            if error.errno in _NO_REFLINKS:  # no map of extents
                return os.fstat(fd).st_blocks * 512
            raise


def _unshared_bytes(fd: int) -> int:
    start, unshared = 0, 0
    while True:
        buffer = bytearray(_MAP.size + _EXTENTS * _EXTENT.size)
        _MAP.pack_into(buffer, 0, start, 2**64 - 1 - start, 0, 0, _EXTENTS)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        found = _MAP.unpack_from(buffer)[3]
        for number in range(found):
            logical, _, length, flags = _EXTENT.unpack_from(buffer, _MAP.size + number * _EXTENT.size)
            unshared += 0 if flags & _SHARED else length
            start = logical + length
            if flags & _LAST:
                return unshared
        if not found:
            return unshared


def _match_nocow(source: int, fd: int) -> None:
    """Give ``fd`` the flag NOCOW of ``source``: btrfs shares blocks only between files that agree on it."""
    with suppress(OSError):  # the file system has no flags
        theirs, ours = _flags(source), _flags(fd)
        if (theirs ^ ours) & _FS_NOCOW_FL:
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=Ixxxx", ours ^ _FS_NOCOW_FL))


def _flags(fd: int) -> int:
    answer: int = struct.unpack("=Ixxxx", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))[0]
    return answer
