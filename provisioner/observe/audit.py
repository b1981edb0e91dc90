"""The audit log: who asked for what, from where, with which result; one JSON line each, never a secret.

Lines are written by a thread of their own, so that a slow disk holds up no request. Without a file they go where the
log goes, from the logger ``audit``, whatever the log's level.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import re
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LOGGER = "audit"
# Lines that wait for the disk. Some 300 bytes each: with a disk that hangs, memory stays bounded and lines are lost.
_BACKLOG = 20_000
# Seconds for the last of them to be written when the service stops.
_LAST_LINES = 5.0
# An API token in any field that a caller fills.
_TOKEN = re.compile(r"lvp_[A-Za-z0-9_-]{12,}")


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened. ``event`` is ``request``, ``job`` (its end) or ``handshake`` (refused).

    ``endpoint`` is the route's pattern, never the path as sent, which may hold anything; ``principal`` is absent where
    nobody was recognised; ``source`` is scheme and host of the image; ``reason`` the error's category or words of ours.
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


class AuditLog:
    """Takes records; ``open`` must be entered for them to be written. ``lost`` hears of each that could not be."""

    def __init__(self, path: Path | None, lost: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._lost = lost
        self._logger = logging.getLogger(_LOGGER)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write until the context is left, then write what is still waiting. Raises OSError where it cannot."""
        self._logger.setLevel(logging.INFO)
        if self._path is None:
            yield
            return
        file = _PrivateFile(self._path, self._lost)
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(_BACKLOG)
        handler = _Bounded(waiting, self._lost)
        listener = _Writer(waiting, file)
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
        line = msgspec.json.encode({"at": stamp, "event": record.event, **msgspec.to_builtins(record)}).decode()
        self._logger.info("%s", _TOKEN.sub("(a token)", line))


class _PrivateFile(logging.handlers.WatchedFileHandler):
    """Follows the file when it is rotated away, and makes each new one for its owner's eyes only."""

    def __init__(self, path: Path, lost: Callable[[], None]) -> None:
        self._lost = lost
        super().__init__(path, encoding="utf-8")
        if path.is_file():  # and not a device
            path.chmod(0o600)

    def _open(self) -> TextIOWrapper:
        # Nothing is kept back: a line that could not be written is gone, and does not fill the memory.
        raw = open(self.baseFilename, "ab", buffering=0, opener=_private)  # noqa: SIM115 - closed with the handler
        return TextIOWrapper(raw, encoding="utf-8", write_through=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # its folder is gone
            self._lost()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        self._lost()  # a full disk, say; the next line is tried again


class _Writer(logging.handlers.QueueListener):
    """Ends in bounded time although lines still wait for a disk that hangs; those are given up."""

    def stop(self) -> None:
        with suppress(queue.Full):
            self.queue.put(None, timeout=_LAST_LINES)  # type: ignore[attr-defined]  # None ends the thread
            if self._thread is not None:
                self._thread.join(_LAST_LINES)


class _Bounded(logging.handlers.QueueHandler):
    def __init__(self, waiting: queue.Queue[logging.LogRecord], lost: Callable[[], None]) -> None:
        super().__init__(waiting)
        self._lost = lost

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        self._lost()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def is_worth_a_line(method: str, status: int) -> bool:
    """Changes, and refusals of any kind of caller. Reads that were allowed are not audited."""
    return method not in {"GET", "HEAD"} or status in {401, 403, 429}
