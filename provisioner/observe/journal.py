"""Send log records with their fields to systemd's journal, in its native protocol.

``journalctl LVP_JOB_ID=...`` then finds the records of one job. This module is unused without the journal.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import EventDict, WrappedLogger

SOCKET = "/run/systemd/journal/socket"
PREFIX = "LVP_"
# A datagram holds about 200 KiB. Longer values, such as tracebacks of nested exception groups, are truncated.
_LONGEST = 32 * 1024
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def is_ours() -> bool:
    """Return whether standard error is connected to the journal, according to ``JOURNAL_STREAM``."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        status = os.fstat(sys.stderr.fileno())
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (ValueError, OSError):
        return False


def frame(fields: Mapping[str, object]) -> bytes:
    """Return the fields as one datagram. Values may contain anything; invalid characters in names become ``_``."""
    out = bytearray()
    for name, value in fields.items():
        key = re.sub(r"[^A-Z0-9_]", "_", name.upper()).encode()
        data = str(value).encode(errors="replace")[:_LONGEST]
        # The length prefix allows newlines in a value and keeps it from forging another field.
        out += key + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return bytes(out)


class Entry(NamedTuple):
    """One record: the datagram for the journal, and the text for standard error if the journal rejects it."""

    datagram: bytes
    text: str

    def size(self) -> int:
        """Return the bytes that count towards the queue's limit."""
        return len(self.datagram)


class Fields:
    """The fields of the record being formatted. A handler formats one record at a time, under its lock."""

    def __init__(self) -> None:
        self._fields: dict[str, object] = {}

    def take(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Keep the fields and drop those that the journal adds itself. A processor of the formatter."""
        for key in ("timestamp", "level"):
            event.pop(key, None)
        self._fields = {
            f"{PREFIX}{name}": value
            for name, value in event.items()
            if not name.startswith("_") and name not in {"event", "exc_info"}
        }
        return event

    def entry(self, record: logging.LogRecord, text: str) -> Entry:
        """Return the record that was formatted last as an entry."""
        fields = {
            "MESSAGE": text,
            "PRIORITY": _PRIORITY.get(record.levelno, 6),
            "SYSLOG_IDENTIFIER": "libvirt-volume-provisioner",
            "LOGGER": record.name,
            **self._fields,
        }
        return Entry(frame(fields), text)


class Sender:
    """The connection to the journal. Sending blocks while the journal does not read."""

    def __init__(self, otherwise: Callable[[bytes], None]) -> None:
        """``otherwise`` gets the line of an entry that is too long, or sent while the journal is down."""
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def send(self, entry: Entry) -> None:
        """Send an entry. Raises OSError if neither the journal nor ``otherwise`` accepts it."""
        try:
            self._socket.sendto(entry.datagram, SOCKET)
        except OSError:
            self._otherwise(entry.text.encode(errors="backslashreplace") + b"\n")
