"""Unix sockets of the API: create one in place of a stale one, never of one in use, and remove it at the end."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The owner and the group of the socket may connect; both need a token too.
_MODE = 0o660


def bind_unix(path: Path) -> socket.socket:
    """Return a socket bound to ``path``, to which no client can connect yet. Raises OSError."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(_MODE)  # nothing can connect before ``listen``
    except BaseException:
        sock.close()
        raise
    return sock


def remove_unix(path: Path, bound: os.stat_result) -> None:
    """Remove the socket unless another program has put its own there; ``bound`` is the status after the bind."""
    with suppress(OSError):
        if os.path.samestat(path.lstat(), bound):
            path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed daemon has left. Raises OSError if it is in use or no socket."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(errno.EEXIST, "a file that is not a socket has this name", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # the queue of a busy daemon may be full
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
    path.unlink()
