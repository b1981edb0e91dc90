"""Reads small regular files, such as a configuration or a certificate, and never waits for the writer of a pipe."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Larger than any revocation list or token file.
MAX_SIZE = 16 * 1024 * 1024


def read_small(path: Path, limit: int = MAX_SIZE) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes. Raises OSError.

    A pipe or a device is refused rather than waited for. A file system that hangs still blocks.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(fd, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit // 1024} KiB", str(path))
    return content
