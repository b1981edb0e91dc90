"""Whether a folder's file system takes data now: not full, not read-only, no I/O error."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NAME = ".lvp-probe"
_BLOCK = bytes(4096)
# The file system has no files without a name (NFS, FUSE), or the kernel does not know them.
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


def write_probe(folder: Path) -> None:
    """Write a block into ``folder`` and wait until it is on the disk; nothing is left behind. Raises OSError.

    Blocks as long as the disk does: call it in a thread that may be abandoned.
    """
    fd = _nameless(folder)
    try:
        os.write(fd, _BLOCK)
        os.fsync(fd)
    finally:
        os.close(fd)


def _nameless(folder: Path) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    path = folder / _NAME
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd
