"""Log lines, text or JSON, on standard error, or text with its fields into the journal if that is what listens.

Owns their shape, and that writing them holds nothing up: a thread of its own writes them. Whoever logs binds job and
request ids as context.
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

# Libraries that would tell every connection at "info".
_QUIET = ("httpx", "httpcore", "hypercorn", "oslo_utils")
# Seconds that the last lines may take when the process ends.
LAST_LINES = 2.0


class LineHandler(logging.Handler, Generic[T]):
    """Makes each record an item and leaves it to a writer. Formatting is done here: context belongs to the task."""

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
        except Exception:  # noqa: BLE001 - a value that cannot be shown must not break who logs it
            self._drop(1)
        else:
            self.writer.put(item)

    def _notice(self, count: int) -> T:
        words = "log lines were dropped: %s did not take them"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, f"{count} {words}", (self.sink,), None)
        self.acquire()  # formatting keeps the record's fields for a moment
        try:
            return self._encode(record, self.format(record))
        finally:
            self.release()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self.on_drop(self.sink, count)


def configure(log_format: str, level: str) -> None:
    """Set up structlog and the standard library's logging alike. ``log_format`` is ``text`` or ``json``."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _without_nones,
        _without_queries,
    ]
    structlog.configure(
        # The level is asked of the standard library's loggers each time: it can change while we run.
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
    logging.captureWarnings(True)  # else they are printed
    sys.unraisablehook = _unraisable  # likewise
    set_level(level)
    atexit.register(flush)


def _renderers(log_format: str, fields: journal.Fields | None) -> list[Processor]:
    if log_format == "json":  # ASCII only, everything else escaped
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        pad_event_to=0,
        # The default, rich's, takes seconds in the loop and prints local variables, secrets among them.
        exception_formatter=_traceback,
    )
    return [_printable, *([fields.take] if fields else []), console]


def set_level(level: str) -> None:
    """From which level on lines are written, from now on."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def flush(seconds: float = LAST_LINES) -> None:
    """Wait until the lines so far are written, for ``seconds`` at most."""
    for handler in _handlers():
        handler.writer.flush(seconds)


def report_drops(report: Callable[[str, int], None]) -> None:
    """Call ``report(sink, count)`` for the lines dropped so far and from now on."""
    for handler in _handlers():
        report(handler.sink, handler.dropped)
        handler.on_drop = report


def warnings() -> list[str]:
    """A sentence for each sink that takes no lines now."""
    troubles = {handler.sink: handler.writer.trouble() for handler in _handlers()}
    return [f"the log ({sink}) {trouble}" for sink, trouble in troubles.items() if trouble is not None]


def _unraisable(found: sys.UnraisableHookArgs) -> None:
    """Log an error that could not be raised, such as a finalizer's, in place of printing it."""
    error = found.exc_value
    trace = None if error is None else (type(error), error, found.exc_traceback)
    logging.getLogger(__name__).error("%s: %r", found.err_msg or "exception ignored in", found.object, exc_info=trace)


def _handlers() -> list[LineHandler[object]]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LineHandler)]


def _line(text: str) -> bytes:
    return text.encode(errors="backslashreplace") + b"\n"


class _StandardError:
    """Standard error as whole lines; blocks while nobody reads it."""

    def __init__(self) -> None:
        self._fd = sys.stderr.fileno()
        self._torn = False

    def write(self, line: bytes) -> None:
        """Raises OSError."""
        left = memoryview(b"\n" + line if self._torn else line)
        while left:
            written = os.write(self._fd, left)
            self._torn = left[written - 1] != ord("\n")
            left = left[written:]


class _Shown:
    """Text that the console renderer is to show as it stands."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The one place where text from elsewhere is made harmless; ``_traceback`` is its counterpart for exceptions."""
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
    """Keys without a value only make a line longer."""
    return {key: value for key, value in event.items() if value is not None}


def _without_queries(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut the queries of urls off every field; the journal takes the fields themselves."""
    return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}


def _redacted(_logger: WrappedLogger, _method: str, line: object) -> str:
    """The finished line once more: a traceback may show the url of a library's own error."""
    return redact(str(line))
