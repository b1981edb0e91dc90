"""What failed on which host: error rows, the lines on standard error, and the exit status for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.exit_status import CliError, fleet_status
from provisioner.cli.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a host did not do it.

    ``error``: the category, as in the API's error responses, or ``unreachable``. ``code``: the HTTP status, if there
    was a response. ``lost``: the request may have arrived.
    """

    error: str
    message: str
    code: int | None = None
    lost: bool = False

    def row(self) -> dict[str, Any]:
        """Return the failure as an object for ``--json``, in the form of the API's error responses."""
        body: dict[str, Any] = {"error": self.error, "message": self.message}
        return body if self.code is None else {**body, "code": self.code}


def failure_of(error: CliError) -> Failure:
    """Return an error of the client as a Failure."""
    from provisioner.cli.client import ApiError
    from provisioner.cli.transport import UnreachableError

    if isinstance(error, ApiError):
        return Failure("refused" if error.code < 500 else "server error", error.message, error.code)
    return Failure("unreachable", error.message, lost=isinstance(error, UnreachableError) and error.lost)


class FleetError(CliError):
    """Some of many failed. Their lines come first, then how many of how many; the exit status counts them."""

    def __init__(self, failures: Iterable[tuple[str, str]], count: int, noun: str = "hosts") -> None:
        """``failures``: names and messages. ``count``: how many there were in all; ``noun``: of what."""
        lines = [f"{printable(name)}: {printable(message)}" for name, message in failures]
        super().__init__("\n".join(lines), fleet_status(len(lines)))
        self._summary = f"{len(lines)} of {count} {noun} failed"

    def show(self, file: Any = None) -> None:
        """Print a line for each, and the summary."""
        del file
        click.echo(f"{self.message}\n{self._summary}", err=True)
