"""A lock for one folder with qcow2 volumes: those who look at headers do not meet those who move or remove files.

To read a header, a file must be opened. The checks for openers would take that for a use of the volume; and a search
for the overlays of a base must not miss one that is moved meanwhile. The lock is a file in ``.lvp``; it works between
threads, processes and hosts, and the kernel releases it when a process ends. A thread that has it may take it again.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lvp_target_file.disk import opened, translated
from provisioner.contracts.errors import TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# struct flock of linux/fcntl.h: type, whence, start, length, process. Locks of open file descriptions, unlike
# flock(2), are known to work between hosts on NFS.
_FLOCK = "hhqqi4x"
# Seconds. A change takes some tens of milliseconds, but a disk may hang.
_TIMEOUT, _PAUSE = 60.0, 0.002


class ChangeLock:
    """The lock at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mine = threading.local()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep all others out. Raises TargetUnavailableError after a minute."""
        if self._is_mine():
            assert self._mine.kind == fcntl.F_WRLCK, "a thread that looks may not change anything"
            yield
            return
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.F_WRLCK):
            yield

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Keep those out who change something. Creates nothing: without the file, nothing was ever changed."""
        if self._is_mine() or not self._path.exists():
            yield
            return
        with self._locked(os.O_RDONLY, fcntl.F_RDLCK):
            yield

    def _is_mine(self) -> bool:
        return getattr(self._mine, "kind", None) is not None

    @contextmanager
    def _locked(self, flags: int, kind: int) -> Iterator[None]:
        with ExitStack() as stack:
            with translated("lock", self._path):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._take(stack.enter_context(opened(self._path, flags)), kind)
            self._mine.kind = kind
            stack.callback(setattr, self._mine, "kind", None)
            yield

    def _take(self, fd: int, kind: int) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0))
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TargetUnavailableError(
                        f"{self._path} stays locked: a change of the folder does not end; does its disk hang?"
                    ) from None
                time.sleep(_PAUSE)
            else:
                return


class NoLock(ChangeLock):
    """For volumes whose size is that of their file, and whose bases have no overlays."""

    @contextmanager
    def changing(self) -> Iterator[None]:
        yield

    @contextmanager
    def looking(self) -> Iterator[None]:
        yield
