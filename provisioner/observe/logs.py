"""Log lines, text or JSON, on standard error, and text with its fields into the journal where that is what listens.

Owns their shape; who logs binds job and request ids as context.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts.redaction import redact
from provisioner.observe import journal

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

# Libraries that would tell every connection at "info".
_QUIET = ("httpx", "httpcore", "hypercorn", "oslo_utils")


def configure(log_format: str, level: str) -> None:
    """Set up structlog and the standard library's logging alike. ``log_format`` is ``text`` or ``json``."""
    to_journal = journal.JournalHandler() if log_format == "text" and journal.is_ours() else None
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _without_nones,
        _without_queries,
    ]
    final: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                # The default, rich's, takes seconds in the loop and prints local variables, secrets among them.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    structlog.configure(
        # The level is asked of the standard library's loggers each time: it can change while we run.
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        cache_logger_on_first_use=True,
    )
    handler = to_journal or logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                *([to_journal.take_fields] if to_journal else []),
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *final,
                _redacted,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """From which level on lines are written, from now on."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _without_nones(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keys without a value only make a line longer."""
    return {key: value for key, value in event.items() if value is not None}


def _without_queries(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut the queries of urls off every field; the journal takes the fields themselves."""
    return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}


def _redacted(_logger: WrappedLogger, _method: str, line: object) -> str:
    """The finished line once more: a traceback may show the url of a library's own error."""
    return redact(str(line))
