"""Read small regular files, such as a configuration or a certificate, without blocking on pipes."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Exceeds any revocation list or token file.
MAX_SIZE = 16 * 1024 * 1024


def read_small(path: Path, limit: int = MAX_SIZE) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes. Raises OSError.

    Pipes and devices are rejected, so reading never waits for a writer. A hanging file system still blocks.
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
