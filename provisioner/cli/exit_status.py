"""What the process says when it ends, and the errors that say so. Owns the numbers; docs/cli.md explains them."""

from __future__ import annotations

from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


class ExitStatus(IntEnum):
    """0 only when what was asked for is done; for a job that is waited for: only when it completed."""

    DONE = 0
    FAILED = 1  # the job failed, or a command on the host did
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


@contextmanager
def spoken_errors() -> Iterator[None]:
    """Show the service's own errors, and files that cannot be used, as a sentence: for commands on the host."""
    from provisioner.contracts.errors import ProvisionerError

    try:
        yield
    except ProvisionerError as error:
        raise CliError(error.message) from error
    except OSError as error:
        if error.filename is None:  # not about a file somebody named: a fault of ours, with its traceback
            raise
        raise CliError(f"{error.filename}: {error.strerror}") from error
