"""Exit statuses and the errors that carry them. docs/cli.md explains the numbers."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from enum import IntEnum
from typing import IO, TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


class ExitStatus(IntEnum):
    """Exit status: 0 only on success; when waiting for a job, only if it completed."""

    DONE = 0
    FAILED = 1  # the job failed, a command on the host did, or the output could not be written
    USAGE = 2  # click's own number for a wrong command line; also for wrong client settings
    CANCELLED = 3  # the job was cancelled
    REFUSED = 4  # the server rejected the request (4xx)
    UNREACHABLE = 5  # no usable response: unreachable, not trusted, or a server error (5xx)
    INTERRUPTED = 130  # Ctrl-C, as shells count it


# What a page says of each.
MEANINGS = {
    ExitStatus.DONE: "Success. With --wait, and for lvp job watch and retry: the job completed.",
    ExitStatus.FAILED: "The job failed, a command on the host failed, or standard output could not be written.",
    ExitStatus.USAGE: "The command line or the client's settings are wrong. Nothing was sent.",
    ExitStatus.CANCELLED: "The job was cancelled.",
    ExitStatus.REFUSED: "The server rejected the request: an unknown job or ambiguous id, not allowed, queue full.",
    ExitStatus.UNREACHABLE: "No usable response: the server is unreachable, not trusted, or failed itself.",
    ExitStatus.INTERRUPTED: "Ctrl-C.",
}

# With many hosts the status counts those that failed, above all other statuses and below those of shells, `timeout` and
# `xargs` (123 and more): 101 if one failed, 120 if 20 or more did.
_FLEET_BASE, _FLEET_MOST = 100, 20
FLEET_RANGE = f"{_FLEET_BASE + 1} to {_FLEET_BASE + _FLEET_MOST}"
FLEET_MEANING = "With --hosts or --batch: 100 and how many hosts, volumes or jobs failed; 120 for 20 or more."


def fleet_status(failed: int) -> int:
    """Return the exit status if ``failed`` of many hosts, volumes or jobs failed: 0 if none did."""
    return _FLEET_BASE + min(failed, _FLEET_MOST) if failed else ExitStatus.DONE


class CliError(click.ClickException):
    """An error message for standard error, and the exit status."""

    def __init__(self, message: str, status: int = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.status = status


def with_reason(message: str, reason: object) -> str:
    """Return the message with the server's reason, a heading in docs/troubleshooting.md, in brackets after it."""
    return f"{message} [{reason}]" if isinstance(reason, str) and reason else message


class ReaderGoneError(CliError):
    """A closed pipe, as in ``lvp job list | head``: not an error."""

    def __init__(self) -> None:
        super().__init__("the reader of standard output has closed it", ExitStatus.DONE)

    def show(self, file: IO[str] | None = None) -> None:
        """Print nothing."""


class OutputError(OSError):
    """A failed write to standard output: the disk is full, or the reader has closed the pipe."""


@contextmanager
def cli_errors() -> Iterator[None]:
    """Turn the service's own errors and file errors into CliError, for host commands."""
    from provisioner.contracts.errors import ProvisionerError

    try:
        yield
    except ProvisionerError as error:
        raise CliError(error.message) from error
    except OSError as error:
        raise cli_error(error) from error


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn errors of the operating system into CliError, for any command."""
    try:
        yield
    except OSError as error:
        raise cli_error(error) from error


def cli_error(error: OSError) -> CliError:
    """Return ``error`` as a CliError about standard output, a file, or neither."""
    if isinstance(error, OutputError) and error.errno == errno.EPIPE:
        return ReaderGoneError()
    if isinstance(error, OutputError):
        return CliError(f"standard output cannot be written: {error.strerror}")
    if error.filename is not None:
        return CliError(f"{error.filename}: {error.strerror}")
    return CliError(f"the operating system reported an error: {error.strerror or error}")
