"""What commands that start a job share: options, the request's fields, the wait for the end."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli.connection import connect, names_hosts
from provisioner.cli.formatting import printable
from provisioner.cli.output import flush, is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from provisioner.cli.client import Client

F = TypeVar("F", bound="Callable[..., Any]")

# Seconds; a restart that rolls jobs back takes up to two minutes on a slow disk.
DEFAULT_PATIENCE = 120.0

patience_option = click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=DEFAULT_PATIENCE,
    show_default=True,
    metavar="SECONDS",
    help="How long to retry if the server stops answering while waiting, such as during a restart.",
)


BATCH_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


def selection_options(command: F) -> F:
    """Add the options that select jobs of many hosts."""
    volume = click.option("--volume", "volume_name", metavar="NAME", help="With --hosts: only jobs for this volume.")
    correlation = click.option("--correlation-id", metavar="ID", help="With --hosts: only jobs submitted with this id.")
    return volume(correlation(command))


@dataclass(frozen=True, slots=True)
class Start:
    """How to start a job: under which key, and whether to wait; ``patience`` in seconds."""

    idempotency_key: str | None
    _: KW_ONLY
    wait: bool
    patience: float
    as_json: bool


class Gibibytes(click.ParamType[int]):
    """A positive whole number."""

    name = "integer"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        del param
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0):
            raise click.UsageError(f"SIZE_GB is a whole number of GiB, such as 20; found {text!r}", ctx)
        return int(text)


def image_field(image: str) -> dict[str, object]:
    """Return the field of a request for what the user typed: the name of an image, or a url. No name has a slash."""
    return {"image_url" if "/" in image else "image": image}


def start(
    connection: Mapping[str, Any], where: str, wanted: Mapping[str, object], how: Start, *, dry_run: bool = False
) -> None:
    """Submit a job on the one server, or the same on each of ``--hosts``. The server chooses values that are None."""
    if names_hosts(connection):
        from provisioner.cli.fleet.jobs import submit_everywhere

        submit_everywhere(connection, where, wanted, how, dry_run=dry_run)
        return
    client = connect(connection)
    if dry_run:
        from provisioner.cli.plan import show_plan

        show_plan(client, wanted, as_json=how.as_json)
        return
    start_on(client, where, wanted, how)


def start_on(client: Client, where: str, wanted: Mapping[str, object], how: Start) -> None:
    """Submit a job to one server, then print its id or wait for it."""
    import uuid

    body = {key: value for key, value in wanted.items() if value is not None}
    answer = client.submit(where, body, how.idempotency_key or str(uuid.uuid4()))
    job_id = str(answer.data["job_id"])
    if how.as_json and not how.wait:
        click.echo(answer.text)
    elif how.as_json:
        pass  # only job objects go to standard output
    elif how.wait:
        click.echo(f"job {printable(job_id)}")
    else:
        click.echo(printable(job_id))
        if is_terminal():
            click.echo(f"Accepted. To see the progress: lvp job watch {printable(job_id)}", err=True)
    if how.wait:
        poll_to_end(client, job_id, how.patience, as_json=how.as_json)


def poll_to_end(client: Client, job_id: str, patience: float, *, as_json: bool) -> None:
    """Show a job until it ends. Raises CliError unless it completed."""
    from provisioner.cli.following import wait_for
    from provisioner.cli.polling import RetryWindow
    from provisioner.cli.progress import display

    flush()
    wait_for(client, job_id, display(as_json=as_json), RetryWindow(patience))


def print_if_more(page: Mapping[str, Any], shown: int) -> None:
    """Print to standard error that the list has more entries."""
    stop = page.get("offset", 0) + shown
    if page.get("count", 0) > stop:
        click.echo(f"{shown} of {page['count']}; more with --offset {stop}", err=True)
