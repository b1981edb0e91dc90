"""Allows one process per state directory: two daemons would remove each other's staged volumes."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(state_directory: Path) -> Iterator[None]:
    """Lock the directory while the block runs; create it if missing. The kernel releases the lock if the process dies.

    Raises ConfigError if another process holds the lock or the directory cannot be used.
    """
    path = state_directory / "lock"
    try:
        state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the state directory {state_directory} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"another instance (process {holder}) uses the state directory {state_directory}; stop it first"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def is_locked(state_directory: Path) -> bool:
    """Return whether a process holds the lock. Changes nothing; False if the lock cannot be opened."""
    try:
        fd = os.open(state_directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a daemon that starts in this instant starts again
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)
