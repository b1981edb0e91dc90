"""Log records to systemd's journal with their fields, in its native protocol. Owns detection, names and framing.

``journalctl LVP_JOB_ID=...`` then finds what concerns one job. Without the journal nothing here is used.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import EventDict, WrappedLogger

SOCKET = "/run/systemd/journal/socket"
PREFIX = "LVP_"
# A datagram holds some 200 KiB; longer values (a traceback of groups in groups) lose their end.
_LONGEST = 32 * 1024
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def is_ours() -> bool:
    """Whether standard error is a stream to the journal: how systemd says that fields are welcome."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        status = os.fstat(sys.stderr.fileno())
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (ValueError, OSError):
        return False


def frame(fields: Mapping[str, object]) -> bytes:
    """The fields as one datagram. Values may hold anything; names are made to fit."""
    out = bytearray()
    for name, value in fields.items():
        key = re.sub(r"[^A-Z0-9_]", "_", name.upper()).encode()
        data = str(value).encode(errors="replace")[:_LONGEST]
        # With the length in front a value may hold line ends, and cannot make up a field of its own.
        out += key + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return bytes(out)


class JournalHandler(logging.Handler):
    """Sends each record as one entry; where the journal does not take it, it goes to standard error."""

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._path = path
        self._fields: dict[str, object] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def take_fields(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """A processor of this handler's formatter: keeps the fields, and leaves out what the journal says by itself.

        A handler formats under its own lock, and so one record at a time.
        """
        for key in ("timestamp", "level"):
            event.pop(key, None)
        self._fields = {
            f"{PREFIX}{name}": value
            for name, value in event.items()
            if not name.startswith("_") and name not in {"event", "exc_info"}
        }
        return event

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        try:
            self._socket.sendto(
                frame(
                    {
                        "MESSAGE": message,
                        "PRIORITY": _PRIORITY.get(record.levelno, 6),
                        "SYSLOG_IDENTIFIER": "libvirt-volume-provisioner",
                        "LOGGER": record.name,
                        **self._fields,
                    }
                ),
                self._path,
            )
        except OSError:
            print(message, file=sys.stderr)  # noqa: T201 - the journal's stream, without fields

    def close(self) -> None:
        self._socket.close()
        super().close()
