"""Opens files and syncs directories; translates OSErrors into the target's errors. Blocking."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from provisioner.contracts.errors import NoSpaceError, TargetError, TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ATTRIBUTES = {errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file for the duration of the block; a new file gets mode 0600."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def sync(directory: Path) -> None:
    """Sync ``directory``, so that renames and removals in it survive a power failure."""
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


@contextmanager
def translated(action: str, path: Path) -> Iterator[None]:
    """Raise OSErrors of the block as NoSpaceError, TargetError or TargetUnavailableError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise NoSpaceError(f"no space left to {action} {path}") from error
        if error.errno in NO_ATTRIBUTES:
            raise TargetError(
                f"the filesystem of {path.parent} does not support user extended attributes; "
                "use ext4, xfs, btrfs or NFS 4.2"
            ) from error
        raise TargetUnavailableError(f"could not {action} {path}: {error.strerror}") from error
