"""The id of an installation, and the lock that keeps two installations from working on the same target.

An installation is one state directory. Targets mark staged volumes with its id, so that recovery touches only its own.
The lock makes a second daemon on the same volumes fail at once. All functions block briefly: call them in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import socket
import struct
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts.errors import TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = structlog.get_logger(__name__)

ID_FILE = "installation-id"
# Twelve digits keep the name of a staged file within 255 bytes; 48 bits are enough to tell a few installations apart.
_DIGITS = 12
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# struct flock of linux/fcntl.h: type, whence, start, length, process. Open file description locks rather than
# flock(2): they can be queried without being taken, and on NFS they work between hosts.
_FLOCK = "hhqqi4x"


def installation_id(state_directory: Path) -> str:
    """Return the id of the installation. The first call creates it in the state directory.

    Raises TargetUnavailableError if it cannot be read or written.
    """
    path = state_directory / ID_FILE
    with _translated(f"the installation's id {path}"):
        state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while (found := _read_id(path)) is None:
            _write_id(path)
        return found


def known_id(state_directory: Path) -> str | None:
    """Return the installation's id, or None if it is missing or unreadable. Changes nothing."""
    try:
        return _read_id(state_directory / ID_FILE)
    except (OSError, TargetUnavailableError):
        return None


class PlaceLock:
    """A lock that keeps other installations off one place (a folder, a volume group) while this process works on it.

    Targets of one process and one installation share the lock. ``shared`` admits other installations that also set it.
    The kernel releases the lock when the process ends.
    """

    def __init__(self, path: Path, place: str, state_directory: Path, *, shared: bool = False) -> None:
        self._path, self._place, self._state, self._shared = path, place, state_directory, shared
        self._held: _Held | None = None

    def take(self) -> str:
        """Lock the place until ``release`` and return this installation's id.

        Raises TargetUnavailableError if another installation holds the place.
        """
        if self._held is None:
            owner = installation_id(self._state)
            with _guard:
                held = _by_place.get((str(self._path), owner))
                self._held = held or _Held(self._lock(owner), owner)
                _by_place[str(self._path), owner] = self._held
        return self._held.owner

    def release(self) -> None:
        """Unlock the place, unless another target of this process still holds it."""
        self._held = None

    def known_owner(self) -> str | None:
        """Return this installation's id, or None if it has none yet. Changes nothing."""
        return known_id(self._state)

    def held_by_other(self) -> str | None:
        """Describe the other installation that holds the place; None if there is none. Changes nothing."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_RDLCK))
            if struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK:
                return None
            owner, _, holder = _holder(fd)
            return None if owner in {"", self.known_owner()} else holder
        except OSError:
            return None
        finally:
            os.close(fd)

    def _lock(self, owner: str) -> int:
        with _translated(f"the lock {self._path}"):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    self._lock_open(fd)
                    self._sign(fd, owner)
                    if _is_at(fd, self._path):
                        return fd
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)  # removed between open and lock: a lock on an unlinked file is ineffective

    def _lock_open(self, fd: int) -> None:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK if self._shared else fcntl.F_WRLCK))
        except BlockingIOError as error:
            raise TargetUnavailableError(
                f"{self._place} is in use by another installation ({_holder(fd)[2]}); stop that one, or set "
                "shared = true for this target in both"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # The ids on staged volumes still keep recoveries apart.
            log.warning("locks are not supported", place=self._place, reason=error.strerror)

    def _sign(self, fd: int, owner: str) -> None:
        about = "several that share it" if self._shared else f"process {os.getpid()} on {socket.gethostname()}"
        state = "" if self._shared else f", state directory {self._state}"
        with suppress(OSError):  # on a full disk the lock works without an owner: recovery frees space
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{owner}\n{about}{state}\n".encode(errors="surrogateescape"), 0)


class _Held:
    """A lock that is released with the last target that uses it."""

    def __init__(self, fd: int, owner: str) -> None:
        self.owner = owner
        weakref.finalize(self, os.close, fd)


_guard = threading.Lock()
_by_place: weakref.WeakValueDictionary[tuple[str, str], _Held] = weakref.WeakValueDictionary()


def _flock(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _holder(fd: int) -> tuple[str, str, str]:
    owner, newline, about = os.pread(fd, 4096, 0).decode(errors="replace").strip().partition("\n")
    return owner, newline, about or "unknown"


def _is_at(fd: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _read_id(path: Path) -> str | None:
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        return None
    except ValueError:
        found = ""
    if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS}}}", found):
        raise TargetUnavailableError(f"{path} is damaged; restore it, or remove it and run 'lvp recover --take-over'")
    return found


def _write_id(path: Path) -> None:
    """Write a new id atomically; of two concurrent calls, one wins."""
    fresh = path.with_name(f"{ID_FILE}.{secrets.token_hex(4)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{secrets.token_hex(_DIGITS // 2)}\n".encode())
        os.fsync(fd)
        with suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.close(fd)
        fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetUnavailableError(f"{what} cannot be used: {error.strerror}") from error
