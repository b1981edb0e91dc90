"""Logging as text or JSON on standard error, or as text with fields to the journal if it is connected.

A separate thread writes the lines, so that logging never blocks. Callers bind job and request ids as context.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from io import StringIO
from typing import TYPE_CHECKING, Generic, TextIO, TypeVar

import structlog

from provisioner.contracts.redaction import redact
from provisioner.observe import journal
from provisioner.observe.escaping import escape, escape_block
from provisioner.observe.line_writer import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

T = TypeVar("T")

# Libraries that log every connection at "info".
_QUIET = ("httpx", "httpcore", "hypercorn", "oslo_utils")
# Seconds to write the remaining lines when the process exits.
LAST_LINES = 2.0


class LineHandler(logging.Handler, Generic[T]):
    """A handler that formats each record in the calling task, whose context it needs, and queues it for a writer."""

    def __init__(
        self,
        sink: str,
        encode: Callable[[logging.LogRecord, str], T],
        write: Callable[[T], None],
        size: Callable[[T], int],
    ) -> None:
        super().__init__()
        self.sink = sink
        self.dropped = 0
        self.on_drop: Callable[[str, int], None] = lambda _sink, _count: None
        self._encode = encode
        self.writer = LineWriter("log", write, size, self._notice, self._drop)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            item = self._encode(record, self.format(record))
        except Exception:  # noqa: BLE001 - a value that cannot be formatted must not break the caller
            self._drop(1)
        else:
            self.writer.put(item)

    def _notice(self, count: int) -> T:
        words = "log lines were dropped: %s did not accept them"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, f"{count} {words}", (self.sink,), None)
        self.acquire()  # formatting stores the record's fields
        try:
            return self._encode(record, self.format(record))
        finally:
            self.release()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self.on_drop(self.sink, count)


def configure(log_format: str, level: str) -> None:
    """Set up structlog and the standard library's logging. ``log_format`` is ``text`` or ``json``."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _without_nones,
        _without_queries,
    ]
    structlog.configure(
        # Filter by the standard library's level on each call, because it can change at runtime.
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        cache_logger_on_first_use=True,
    )
    fields = journal.Fields() if log_format == "text" and journal.is_ours() else None
    handler: LineHandler[bytes] | LineHandler[journal.Entry]
    if fields is None:
        handler = LineHandler("stderr", lambda _record, text: _line(text), _StandardError().write, len)
    else:
        handler = LineHandler("journal", fields.entry, journal.Sender(_StandardError().write).send, journal.Entry.size)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(log_format, fields),
                _redacted,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.captureWarnings(True)  # otherwise warnings are printed
    sys.unraisablehook = _unraisable  # likewise
    set_level(level)
    atexit.register(flush)


def _renderers(log_format: str, fields: journal.Fields | None) -> list[Processor]:
    if log_format == "json":  # ASCII only; other characters are escaped
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        # The default (rich) blocks the event loop for seconds and prints local variables, including secrets.
        exception_formatter=_traceback,
    )
    return [_printable, *([fields.take] if fields else []), console]


def set_level(level: str) -> None:
    """Set the lowest level to log."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def flush(seconds: float = LAST_LINES) -> None:
    """Wait until all queued lines are written, for ``seconds`` at most."""
    for handler in _handlers():
        handler.writer.flush(seconds)


def report_drops(report: Callable[[str, int], None]) -> None:
    """Call ``report(sink, count)`` for the lines dropped so far, and for each later drop."""
    for handler in _handlers():
        report(handler.sink, handler.dropped)
        handler.on_drop = report


def warnings() -> list[str]:
    """Return a warning for each sink that accepts no lines now."""
    troubles = {handler.sink: handler.writer.trouble() for handler in _handlers()}
    return [f"the log ({sink}) {trouble}" for sink, trouble in troubles.items() if trouble is not None]


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Log an unraisable error, such as a finalizer's, instead of printing it."""
    error = found.exc_value
    trace = None if error is None else (type(error), error, found.exc_traceback)
    logging.getLogger(__name__).error("%s: %r", found.err_msg or "exception ignored in", found.object, exc_info=trace)


def _handlers() -> list[LineHandler[object]]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LineHandler)]


def _line(text: str) -> bytes:
    return text.encode(errors="backslashreplace") + b"\n"


class _StandardError:
    """Standard error, written in whole lines. Writing blocks while the reader is not reading."""

    def __init__(self) -> None:
        self._fd = sys.stderr.fileno()
        self._torn = False

    def write(self, line: bytes) -> None:
        """Write a whole line. Raises OSError."""
        left = memoryview(b"\n" + line if self._torn else line)
        while left:
            written = os.write(self._fd, left)
            self._torn = left[written - 1] != ord("\n")
            left = left[written:]


class _Shown:
    """Text that the console renderer prints unchanged."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape untrusted text in all fields; ``_traceback`` does the same for exceptions."""
    return {escape(key): _shown(key, value) for key, value in event.items()}


def _shown(key: str, value: object) -> object:
    if key == "exc_info" or value is None or isinstance(value, bool | int | float):
        return value
    if key in {"exception", "stack"}:
        return escape_block(str(value))
    if key in {"event", "timestamp", "level", "logger"}:  # the renderer pads these
        return escape(str(value))
    if isinstance(value, str):
        return value if value.isprintable() else _Shown(repr(value))
    return _Shown(escape(repr(value)))


def _traceback(out: TextIO, exc_info: ExcInfo) -> None:
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write("\n" + escape_block(text.getvalue().strip("\n")))


def _without_nones(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Drop the fields without a value."""
    return {key: value for key, value in event.items() if value is not None}


def _without_queries(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Remove the queries of URLs from every field, because the journal gets the fields too."""
    return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}


def _redacted(_logger: WrappedLogger, _method: str, line: object) -> str:
    """Redact the rendered line again, because a traceback may contain a URL."""
    return redact(str(line))
