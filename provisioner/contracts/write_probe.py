"""Check that a folder's file system accepts writes: not full, not read-only, no I/O error."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NAME = ".lvp-probe"
_BLOCK = bytes(4096)
# The file system (NFS, FUSE) or the kernel does not support O_TMPFILE.
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


def write_probe(folder: Path) -> None:
    """Write a block to a temporary file in ``folder``, sync and remove it. Raises OSError.

    Blocks while the disk does: call it in a thread that may be abandoned.
    """
    fd = _open_unnamed(folder)
    try:
        os.write(fd, _BLOCK)
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_unnamed(folder: Path) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    path = folder / _NAME
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd
