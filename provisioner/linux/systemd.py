"""The parts of systemd's protocol that a service needs: notifications and passed sockets. No library needed."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(message: str) -> None:
    """Notify the service manager, if there is one: ``READY=1``, ``STOPPING=1``, ``STATUS=...``, ``WATCHDOG=1``."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel, suppress(OSError):
        channel.setblocking(False)  # a manager that does not read must not block the service
        channel.sendto(message.encode(), target)


def passed_sockets() -> list[int]:
    """Return the descriptors of the sockets that systemd passed; empty if there are none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    return list(range(_FIRST_FD, _FIRST_FD + int(count))) if count.isdigit() else []


def watchdog_interval() -> float | None:
    """Return the seconds between watchdog messages, half of the timeout; None if the watchdog is off."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    if not allowed.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(allowed) / 1e6 / 2
