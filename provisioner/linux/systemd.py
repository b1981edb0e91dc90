"""The parts of systemd's protocol that a service needs: notifications and passed sockets. No library needed."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(message: str) -> None:
    """Tell the service manager, where there is one: ``READY=1``, ``STOPPING=1``, ``STATUS=...``, ``WATCHDOG=1``."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel, suppress(OSError):
        channel.setblocking(False)  # a manager that does not listen must not hold up the service
        channel.sendto(message.encode(), target)


def passed_sockets() -> list[int]:
    """Descriptors of the sockets systemd listens on for us; empty where there are none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    return list(range(_FIRST_FD, _FIRST_FD + int(count))) if count.isdigit() else []


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, half of what the manager allows; None where it wants none."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    if not allowed.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(allowed) / 1e6 / 2
