"""What the process says when it ends, and the errors that say so. Owns the numbers; docs/cli.md explains them."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from enum import IntEnum
from typing import IO, TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


class ExitStatus(IntEnum):
    """0 only when what was asked for is done; for a job that is waited for: only when it completed."""

    DONE = 0
    FAILED = 1  # the job failed, a command on the host did, or the output could not be written
    USAGE = 2  # click's own number for a wrong command line; also for wrong client settings
    CANCELLED = 3  # the job was cancelled
    REFUSED = 4  # the server answered no (4xx)
    UNREACHABLE = 5  # no usable answer: not reachable, not trusted, or its own fault (5xx)
    INTERRUPTED = 130  # Ctrl-C, as shells count it


class CliError(click.ClickException):
    """An error to show as one sentence on standard error, and the status to end with."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.status = status


class ReaderGoneError(CliError):
    """`lvp job list | head`: the reader has what it wanted, which is no error."""

    def __init__(self) -> None:
        super().__init__("the reader of standard output has gone", ExitStatus.DONE)

    def show(self, file: IO[str] | None = None) -> None:
        """Say nothing."""


class OutputError(OSError):
    """Standard output does not take what is written: its disk is full, or its reader has gone."""


@contextmanager
def cli_errors() -> Iterator[None]:
    """Show the service's own errors, and files that cannot be used, as a sentence: for commands on the host."""
    from provisioner.contracts.errors import ProvisionerError

    try:
        yield
    except ProvisionerError as error:
        raise CliError(error.message) from error
    except OSError as error:
        raise cli_error(error) from error


@contextmanager
def system_errors() -> Iterator[None]:
    """Show what the operating system refused as a sentence, whatever the command was doing."""
    try:
        yield
    except OSError as error:
        raise cli_error(error) from error


def cli_error(error: OSError) -> CliError:
    """Return ``error`` as a sentence: about standard output, about a file, or about neither."""
    if isinstance(error, OutputError) and error.errno == errno.EPIPE:
        return ReaderGoneError()
    if isinstance(error, OutputError):
        return CliError(f"standard output cannot be written: {error.strerror}")
    if error.filename is not None:
        return CliError(f"{error.filename}: {error.strerror}")
    return CliError(f"the operating system refused: {error.strerror or error}")
