"""An image file whose calls may hang: each runs in a thread that a cancel leaves behind.

A thread that hangs in the kernel cannot be ended. So it never touches anything but this file and memory of its own, and
its last user closes the descriptor.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvp_source_file.beneath import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

# From linux/fs.h: share the blocks of another file until one of them changes.
_FICLONE = 0x40049409


@dataclass(frozen=True, slots=True)
class Status:
    """What tells one content of a file from another; sizes in bytes, times in nanoseconds since the epoch."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Status:
        """Return the part of ``status`` that matters."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def version(self) -> str:
        """Return a text that changes if the file is written, replaced, or gets another date."""
        return f"{self.inode}-{self.size}-{self.mtime_ns}-{self.ctime_ns}"

    def has_content_of(self, other: Status) -> bool:
        """Whether nothing was written in between. A rename, a link or a new mode changes ``ctime_ns`` only."""
        return (self.inode, self.size, self.mtime_ns) == (other.inode, other.size, other.mtime_ns)


class OpenFile:
    """One file to read. All methods but ``close`` block, maybe forever; any of them may be abandoned in its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._users = 0
        self._closed = False

    def open(self, folder: str, path: bytes) -> Status:
        """Open the regular file ``path`` beneath ``folder``. Raises OSError, like ``open_regular``."""
        with self._used():
            self._fd, status = open_regular(folder, path)
        return Status.of(status)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; none at the end of the file."""
        with self._used() as fd:
            return os.pread(fd, size, offset)

    def status(self) -> Status:
        """Return the file's present status."""
        with self._used() as fd:
            return Status.of(os.fstat(fd))

    def clone_to(self, fd: int) -> int | None:
        """Make the empty file ``fd`` share the blocks of this one; return its size, or None if that is impossible.

        It is possible only within one file system, and that of ``fd`` is the host's own: this does not hang.
        """
        with self._used() as own:
            try:
                fcntl.ioctl(fd, _FICLONE, own)
            except OSError:  # another file system, or one without shared blocks
                return None
            return os.fstat(fd).st_size

    def close(self) -> None:
        """Close the file, or let the last thread that uses it close it. May block as well."""
        with self._lock:
            self._closed = True
            unused = not self._users
        if unused:
            self._release()

    @contextmanager
    def _used(self) -> Iterator[int]:
        with self._lock:
            if self._closed:
                raise ValueError("the file is closed")
            self._users += 1
        try:
            yield self._fd if self._fd is not None else -1
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and not self._users
        if last:
            self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
