"""Finds out whether a file is open, by which processes, and whether it is opened later. Blocking: call it in a thread.

The check takes a write lease. The kernel grants it only if the file is not open elsewhere, including by loop devices,
mappings and processes of other namespaces, which a scan of /proc cannot see. While the lease is held, an open of the
file waits and can be detected. The scan of /proc finds process names for the error message. It also replaces the lease
if the filesystem has none or the file has another owner (without CAP_LEASE only the owner may take one). QEMU's
byte-range locks are checked too: on a network filesystem they reveal a guest on another host.
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

# udev and indexers open a new file briefly, so a lease that is refused once is retried.
_TRIES = 3
_PAUSE = 0.05


class Hold:
    """A file that is watched for openers.

    ``users`` are the processes that have it open; if there are any, it is not watched. ``fd`` is our own descriptor
    of the file, which is not counted.
    """

    def __init__(self, path: Path, fd: int, users: list[VolumeUser], *, leased: bool = False) -> None:
        self.fd = fd
        self.users = users
        self._path = path
        self._leased = leased

    def opened(self) -> list[VolumeUser]:
        """Return the processes that opened the file since it was found closed, or wait to. Raises OSError."""
        if self._leased and fcntl.fcntl(self.fd, fcntl.F_GETLEASE) == fcntl.F_WRLCK and not _is_locked(self.fd):
            return []
        found = _scan_proc(os.fstat(self.fd), self.fd)
        if self._leased or _is_locked(self.fd):
            return found or [VolumeUser("process", "that opened it just now")]
        return found


def users_of(path: Path) -> list[VolumeUser]:
    """Return the processes that have the file at ``path`` open; empty if it is closed. Raises OSError."""
    with held(path) as hold:
        return hold.users


@contextmanager
def held(path: Path, flags: int = os.O_RDONLY) -> Iterator[Hold]:
    """Watch the file at ``path``: if it is closed, an open of it during the block is detected, and waits if leased.

    ``flags`` are those of our own open. Raises OSError.
    """
    hold = _held(path, flags)
    try:
        yield hold
    finally:
        if hold.fd >= 0:
            os.close(hold.fd)  # also releases the lease, which lets waiting opens continue


def _held(path: Path, flags: int) -> Hold:
    busy: list[VolumeUser] = []
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        try:
            fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BlockingIOError:  # another process has a lease on it
            continue
        try:
            refused = _is_locked(fd) or _lease_refused(fd)
            busy = [] if refused is False else _scan_proc(os.fstat(fd), fd)
        except BaseException:
            os.close(fd)
            raise
        if not refused and not busy:
            return Hold(path, fd, [], leased=refused is False)
        os.close(fd)
    return Hold(path, -1, busy or [VolumeUser("process", "unknown to this host's process list")])


def _is_locked(fd: int) -> bool:
    """Return whether another process, such as QEMU, has a byte-range lock on the file."""
    ask = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with suppress(OSError):  # the filesystem has no locks
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, ask)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    return False


def _lease_refused(fd: int) -> bool | None:
    """Take a write lease until ``fd`` is closed. Return True if it is refused, None if leases are unavailable."""
    try:
        # An open of a leased file makes the kernel signal us. The default signal would kill the process.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False


def _scan_proc(wanted: os.stat_result, own_fd: int) -> list[VolumeUser]:
    own = f"/proc/{os.getpid()}/fd/{own_fd}"
    return [
        VolumeUser("process", f"{_command(process)} ({process.name})")
        for process in sorted(Path("/proc").glob("[0-9]*"))
        if _has_open(process, wanted, own)
    ]


def _has_open(process: Path, wanted: os.stat_result, own: str) -> bool:
    with suppress(OSError):  # it ended, or we may not read it
        for fd in (process / "fd").iterdir():
            with suppress(OSError):
                if str(fd) != own and os.path.samestat(fd.stat(), wanted):
                    return True
    return False


def _command(process: Path) -> str:
    with suppress(OSError):
        return (process / "comm").read_text().strip()
    return "?"
