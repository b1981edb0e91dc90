"""Whether a file is open, who has it open, and whether it was opened since. Blocking: call it in a thread.

The kernel is asked with a write lease: it is granted only if no other open of the file exists, and so also knows of
loop devices, mapped files and processes of other namespaces, which no walk over /proc sees. While the lease is held,
an open of the file waits, and shows. The walk finds names for the error, and stands in if a filesystem has no leases
or the file's owner forbids one (without CAP_LEASE only the owner may ask). QEMU's byte-range locks are looked at as
well: on a network filesystem they show a guest of another host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.contracts import VolumeUser

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/fcntl.h
_F_SETSIG = 10
_F_OFD_GETLK = 36
_FLOCK = "hhqqi4x"

# udev and indexers open a fresh file for a moment: a lease refused once says little.
_TRIES = 3
_PAUSE = 0.05


class Hold:
    """One file, looked at for openers from the moment it was found closed.

    ``users`` are those that had it open then. ``fd`` is our own open of the file; it counts as none.
    """

    def __init__(self, path: Path, fd: int, users: list[VolumeUser], *, leased: bool = False) -> None:
        self.fd = fd
        self.users = users
        self._path = path
        self._leased = leased

    def opened(self) -> list[VolumeUser]:
        """Return what opened the file, or waits to open it, since it was found closed. Raises OSError."""
        if self._leased and fcntl.fcntl(self.fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK and not _is_locked(self.fd):
            return []
        found = _walk_proc(os.fstat(self.fd), self.fd)
        if self._leased or _is_locked(self.fd):
            return found or [VolumeUser("process", "that opened it just now")]
        return found


def users_of(path: Path) -> list[VolumeUser]:
    """Return who has the file at ``path`` open; empty if it is closed. Raises OSError."""
    with held(path) as hold:
        return hold.users


@contextmanager
def held(path: Path, flags: int = os.O_RDONLY) -> Iterator[Hold]:
    """Hold the file at ``path``: if it is closed, an open of it shows until this is left, and waits if it has to.

    ``flags`` are those of our own open. Raises OSError.
    """
    hold = _held(path, flags)
    try:
        yield hold
    finally:
        if hold.fd >= 0:
            os.close(hold.fd)  # gives the lease up; the last look may have found someone waiting for that


def _held(path: Path, flags: int) -> Hold:
    busy: list[VolumeUser] = []
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        try:
            fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BlockingIOError:  # another has a lease on it
            continue
        try:
            refused = _is_locked(fd) or _lease_refused(fd)
            busy = [] if refused is False else _walk_proc(os.fstat(fd), fd)
        except BaseException:
            os.close(fd)
            raise
        if not refused and not busy:
            return Hold(path, fd, [], leased=refused is False)
        os.close(fd)
    return Hold(path, -1, busy or [VolumeUser("process", "unknown to this host's process list")])


def _is_locked(fd: int) -> bool:
    """Whether a write lock on the whole file would meet another's lock, as QEMU holds them."""
    ask = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with suppress(OSError):  # no locks there, so no one holds one
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, ask)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    return False


def _lease_refused(fd: int) -> bool | None:
    """Take a write lease, which lasts until ``fd`` is closed: False. None if there are no leases to be had."""
    try:
        # An open of the file while the lease is held makes the kernel signal us; the default signal kills.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False


def _walk_proc(wanted: os.stat_result, own_fd: int) -> list[VolumeUser]:
    own = f"/proc/{os.getpid()}/fd/{own_fd}"
    return [
        VolumeUser("process", f"{_command(process)} ({process.name})")
        for process in sorted(Path("/proc").glob("[0-9]*"))
        if _has_open(process, wanted, own)
    ]


def _has_open(process: Path, wanted: os.stat_result, own: str) -> bool:
    with suppress(OSError):  # it ended, or is not ours to look into
        for fd in (process / "fd").iterdir():
            with suppress(OSError):
                if str(fd) != own and os.path.samestat(fd.stat(), wanted):
                    return True
    return False


def _command(process: Path) -> str:
    with suppress(OSError):
        return (process / "comm").read_text().strip()
    return "?"
