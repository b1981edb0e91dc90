"""The audit log: one JSON line per event with caller, address, action and result, without secrets.

A separate thread writes the lines, so that a hanging disk delays no request. Lines that cannot be written are counted,
and one line reports how many are missing. In the log, the lines come from the logger ``audit``, whatever its level.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from provisioner.observe.line_writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LOGGER = "audit"
# Seconds to write the remaining lines when the service stops.
_LAST_LINES = 2.0
# An API token in a field that the caller controls.
_TOKEN = re.compile(r"lvp_[A-Za-z0-9_-]{12,}")


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One audit event: ``request``, ``job`` (it ended), ``handshake`` (rejected) or ``lost`` (missing lines).

    ``endpoint`` is the route's pattern, never the path as sent, which may contain anything. ``principal`` is absent if
    the caller was not authenticated. ``source`` is the scheme and host of the image. ``reason`` is the error's category
    or a fixed text. ``replaced`` is the owner of the volume that a job or a restore replaced, ``kept_as`` its name now.
    """

    event: str = "request"
    method: str | None = None
    endpoint: str | None = None
    status: int | str
    reason: str | None = None
    principal: str | None = None
    role: str | None = None
    via: str | None = None
    address: str | None = None
    job_id: str | None = None
    target: str | None = None
    volume: str | None = None
    image: str | None = None
    source: str | None = None
    request_id: str | None = None
    replaced: str | None = None
    kept_as: str | None = None


class AuditLog:
    """The audit log, in a file, the log, both or neither. Enter ``open`` to write records.

    ``lost`` is called with the number of lost records.
    """

    def __init__(
        self, path: Path | None, lost: Callable[[int], None] = lambda _count: None, *, to_log: bool = False
    ) -> None:
        self._path = path
        self._to_log = to_log
        self._lost = lost
        self._logger = logging.getLogger(_LOGGER)
        self._writer: LineWriter[bytes] | None = None
        self._file: _PrivateFile | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write records until the context exits, then close. Raises OSError if the file cannot be opened."""
        self._logger.setLevel(logging.INFO)
        if self._path is not None:
            self._file = _PrivateFile(self._path)
            self._writer = LineWriter("audit", self._file.write, len, _lost_line, self._lost)
        try:
            yield
        finally:
            self.close()

    def close(self) -> bool:
        """Write the queued records, for a few seconds at most. Blocks: call it in a thread.

        Returns whether all records were written.
        """
        writer, self._writer = self._writer, None
        if writer is None or self._file is None:
            return True
        if done := writer.close(_LAST_LINES):
            self._file.close()
        return done

    def note(self, record: AuditRecord) -> None:
        """Queue a record without blocking."""
        line = _line_of(record)
        if self._writer is not None:
            self._writer.put(f"{line}\n".encode())
        elif self._path is not None:
            self._lost(1)
        if self._to_log:
            self._logger.info("%s", line)

    def warnings(self) -> list[str]:
        """Return a warning if lines cannot be written to the file now."""
        trouble = self._writer.trouble() if self._writer is not None else None
        return [] if trouble is None else [f"the audit log {self._path} {trouble}"]


class _PrivateFile:
    """A file with mode 0600 that is reopened after log rotation.

    Every method except the constructor may block on the disk or on the reader of a pipe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = self._open()
        self._torn = False

    def write(self, line: bytes) -> None:
        """Append a whole line. Raises OSError."""
        if self._fd is None or not self._is_current(self._fd):
            self.close()
            self._fd = self._open()
            self._torn = False
        left = memoryview(b"\n" + line if self._torn else line)
        while left:
            written = os.write(self._fd, left)
            self._torn = left[written - 1] != ord("\n")
            left = left[written:]

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _open(self) -> int:
        # Non-blocking only for the open: a pipe without a reader then fails instead of blocking.
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        os.set_blocking(fd, True)
        if stat.S_ISREG(os.fstat(fd).st_mode):  # not a device
            os.fchmod(fd, 0o600)
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(fd))  # noqa: PTH116 - beside fstat
        except FileNotFoundError:
            return False


def _line_of(record: AuditRecord) -> str:
    """Return the record as one line of ASCII, with every other character escaped."""
    stamp = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    fields = {"at": stamp, "event": record.event, **msgspec.to_builtins(record)}
    return _TOKEN.sub("(a token)", json.dumps(fields, separators=(",", ":")))


def _lost_line(count: int) -> bytes:
    reason = f"{count} audit lines could not be written"
    return f"{_line_of(AuditRecord(event='lost', status='lost', reason=reason))}\n".encode()


def is_audited(method: str, status: int) -> bool:
    """Return whether a request is audited: changes and rejected callers are, allowed reads are not."""
    return method not in {"GET", "HEAD"} or status in {401, 403, 429}
