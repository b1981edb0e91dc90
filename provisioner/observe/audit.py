"""The audit log: who asked for what, from where, with which result; one JSON line each, never a secret.

Lines are written by a thread of their own, so that a slow disk holds up no request. Without a file they go where the
log goes, from the logger ``audit``.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOGGER = "audit"


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. ``endpoint`` is the route's pattern; ``principal`` is absent where nobody was recognised."""

    method: str
    endpoint: str
    path: str
    status: int
    address: str
    request_id: str
    principal: str | None = None
    role: str | None = None
    via: str | None = None
    job_id: str | None = None


class AuditLog:
    """Takes records; ``open`` must be entered for them to be written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._logger = logging.getLogger(_LOGGER)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write until the context is left, then write what is still waiting. Raises OSError where it cannot."""
        if self._path is None:
            yield
            return
        # Follows the file when it is rotated away by logrotate.
        file = logging.handlers.WatchedFileHandler(self._path, encoding="utf-8")
        self._path.chmod(0o600)
        waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        handler = logging.handlers.QueueHandler(waiting)
        listener = logging.handlers.QueueListener(waiting, file)
        self._logger.addHandler(handler)
        self._logger.propagate = False
        listener.start()
        try:
            yield
        finally:
            self._logger.removeHandler(handler)
            self._logger.propagate = True
            listener.stop()
            file.close()

    def note(self, record: AuditRecord) -> None:
        """Put a record on its way."""
        stamp = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line = msgspec.json.encode({"at": stamp, **msgspec.to_builtins(record)}).decode()
        self._logger.info("%s", line)


def is_worth_a_line(method: str, status: int) -> bool:
    """Changes, and refusals of any kind of caller. Reads that were allowed are not audited."""
    return method not in {"GET", "HEAD"} or status in {401, 403, 429}
