"""Log records to systemd's journal with their fields, in its native protocol. Owns detection, names and framing.

``journalctl LVP_JOB_ID=...`` then finds what concerns one job. Without the journal nothing here is used.
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


class Entry(NamedTuple):
    """One record: the datagram for the journal, and its text for standard error if the journal does not take it."""

    datagram: bytes
    text: str

    def size(self) -> int:
        """Bytes, for the queue's limit."""
        return len(self.datagram)


class Fields:
    """Keeps a record's fields while its formatter runs; a handler formats one record at a time, under its own lock."""

    def __init__(self) -> None:
        self._fields: dict[str, object] = {}

    def take(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """A processor of the formatter: keep the fields, and leave out what the journal says by itself."""
        for key in ("timestamp", "level"):
            event.pop(key, None)
        self._fields = {
            f"{PREFIX}{name}": value
            for name, value in event.items()
            if not name.startswith("_") and name not in {"event", "exc_info"}
        }
        return event

    def entry(self, record: logging.LogRecord, text: str) -> Entry:
        """The record that was formatted last, as one entry."""
        fields = {
            "MESSAGE": text,
            "PRIORITY": _PRIORITY.get(record.levelno, 6),
            "SYSLOG_IDENTIFIER": "libvirt-volume-provisioner",
            "LOGGER": record.name,
            **self._fields,
        }
        return Entry(frame(fields), text)


class Sender:
    """Sends entries to the journal, and blocks while the journal does not read."""

    def __init__(self, otherwise: Callable[[bytes], None]) -> None:
        """``otherwise`` takes the line of an entry that the journal refuses: too long, or no journal there just now."""
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def send(self, entry: Entry) -> None:
        """Raises OSError if neither took it."""
        try:
            self._socket.sendto(entry.datagram, SOCKET)
        except OSError:
            self._otherwise(entry.text.encode(errors="backslashreplace") + b"\n")
