"""Whether anybody has a file open, and who. Blocking: call it in a thread.

The kernel is asked with a write lease: it is given only where no other open of the file exists, and so also
knows of loop devices, mapped files and processes of other namespaces, which no walk over /proc sees. The walk
only finds names for the error, and stands in where a filesystem has no leases. QEMU's byte-range locks are
looked at as well: on a network filesystem they show a guest of another host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

from provisioner.contracts import VolumeUser

# linux/fcntl.h
_F_SETSIG = 10
_F_OFD_GETLK = 36
_FLOCK = "hhqqi4x"

# udev and indexers open a fresh file for a moment: a lease refused once says little.
_TRIES = 3
_PAUSE = 0.05


def users_of(path: Path) -> list[VolumeUser]:
    """Who has the file at ``path`` open; empty where nobody has. Raises OSError."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE)
        open_elsewhere = _ask_kernel(path)
        if open_elsewhere is False:
            return []
    found = _walk_proc(path)
    return found or ([VolumeUser("process", "unknown to this host's process list")] if open_elsewhere else [])


def _ask_kernel(path: Path) -> bool | None:
    """Whether there is another open of the file; None where the filesystem cannot tell."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BlockingIOError:
        return True  # another has a lease on it
    try:
        return _is_locked(fd) or _lease_refused(fd)
    finally:
        os.close(fd)


def _is_locked(fd: int) -> bool:
    """Whether a write lock on the whole file would meet another's lock, as QEMU holds them."""
    ask = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with suppress(OSError):  # no locks there: then nobody holds one
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, ask)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    return False


def _lease_refused(fd: int) -> bool | None:
    try:
        # Whoever opens the file while the lease is held makes the kernel signal us; the default one kills.
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    return False


def _walk_proc(path: Path) -> list[VolumeUser]:
    wanted = path.stat()
    return [
        VolumeUser("process", f"{_command(process)} ({process.name})")
        for process in sorted(Path("/proc").glob("[0-9]*"))
        if _has_open(process, wanted)
    ]


def _has_open(process: Path, wanted: os.stat_result) -> bool:
    with suppress(OSError):  # it ended, or is not ours to look into
        for fd in (process / "fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(fd.stat(), wanted):
                    return True
    return False


def _command(process: Path) -> str:
    with suppress(OSError):
        return (process / "comm").read_text().strip()
    return "?"
