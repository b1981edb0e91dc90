"""Wrappers that tell errors of standard output from others, and silence broken streams."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

from provisioner.cli.exit_status import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


T = TypeVar("T")


class _Output:
    """A stream whose write errors are OutputError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def buffer(self) -> _Output:
        """The stream for bytes, such as a completion script."""
        return _Output(self._stream.buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str | bytes) -> Any:
        return _tagged(lambda: self._stream.write(text))

    def flush(self) -> None:
        _tagged(self._stream.flush)


def _tagged(work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from error


@contextmanager
def watched_output() -> Iterator[None]:
    """Raise OutputError if standard output cannot be written, including buffered data at the end."""
    stream = sys.stdout
    if stream is None:  # closed by the caller
        yield
        return
    sys.stdout = cast("TextIO", _Output(stream))
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout = stream
        silence_broken(stream)


def flush() -> None:
    """Pass on what is buffered for standard output, if it is open: the reader of a pipe wants lines as they come."""
    if sys.stdout is not None:
        sys.stdout.flush()


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def silence_broken(stream: TextIO | None) -> None:
    """Redirect a broken stream to /dev/null.

    Otherwise Python writes the buffered data once more at exit, fails, and exits with a status of its own.
    """
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # streams in tests have no descriptor
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
