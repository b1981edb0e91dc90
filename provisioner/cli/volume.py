"""``lvp volume``: list, resize and remove the volumes a server made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.client import RESIZE_TIMEOUT
from provisioner.cli.completion import complete_target, complete_volume
from provisioner.cli.connection import connect, connection_options, json_option, path
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.formatting import printable, size, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.job import Gibibytes, print_if_more

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.group(cls=SuggestingGroup)
def volume() -> None:
    """List, resize and remove the volumes a server made."""


@volume.command("list", cls=SectionedCommand, examples=["lvp volume list"])
@click.option("--offset", type=click.IntRange(min=0), default=0, metavar="N", help="Skip the first N.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="N", help="Show at most N.  [default: 100]")
@json_option
@connection_options
def list_volumes(offset: int, limit: int, as_json: bool, **connection: str | None) -> None:
    """List the volumes that the server made and that still exist.

    If a target does not answer, standard error names it, and the exit status is 5.
    """
    client = connect(connection)
    answer = client.get(path("volumes"), {"offset": offset, "limit": limit})
    if as_json:
        click.echo(answer.text)
    else:
        _show(answer.data)
    unavailable = answer.data.get("unavailable") or {}
    for target, reason in unavailable.items():
        click.echo(printable(f"{target}: {reason}"), err=True)
    if unavailable:
        words = printable(", ".join(unavailable))
        raise CliError(f"the volumes of some targets are missing: {words}", ExitStatus.UNREACHABLE)


def _show(page: Mapping[str, Any]) -> None:
    rows = [
        [
            entry["target"],
            entry["name"],
            size(entry["size_bytes"]),
            entry["created_at"],
            entry["path"],
            entry["image_url"],
        ]
        for entry in page["volumes"]
    ]
    click.echo(table(["TARGET", "NAME", "SIZE", "CREATED", "PATH", "IMAGE"], rows))
    print_if_more(page, len(rows))


@volume.command(
    cls=SectionedCommand,
    examples=["lvp volume resize fast web-01 40", "lvp volume resize fast web-01 40 --online"],
)
@click.argument("target", shell_complete=complete_target)
@click.argument("name", shell_complete=complete_volume)
@click.argument("size_gb", type=Gibibytes())
@click.option("--online", is_flag=True, help="Also while the volume is in use, if the target can.")
@json_option
@connection_options
def resize(target: str, name: str, size_gb: int, online: bool, as_json: bool, **connection: str | None) -> None:
    """Grow the volume NAME on TARGET to SIZE_GB GiB.

    The server must have made the volume. It never shrinks. The new part reads as zeros; zeroing
    may take minutes, and the volume keeps its old size if the command is interrupted.
    A running guest sees the new size after 'virsh blockresize DOMAIN PATH SIZE'.
    """
    body = {"volume_size_gb": size_gb, **({"online": True} if online else {})}
    client = connect(connection)
    answer = client.post(path("volumes", target, name, "resize"), body, limit=RESIZE_TIMEOUT)
    if as_json:
        click.echo(answer.text)
        return
    outcome = (
        "resized volume {} on {} to {}" if answer.data["status"] == "resized" else "volume {} on {} has {} already"
    )
    click.echo(outcome.format(printable(name), printable(target), size(answer.data["size_bytes"])))


@volume.command(
    cls=SectionedCommand,
    examples=["lvp volume remove fast web-01", "lvp volume remove fast web-01 --yes    # in a script"],
)
@click.argument("target", shell_complete=complete_target)
@click.argument("name", shell_complete=complete_volume)
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@json_option
@connection_options
def remove(target: str, name: str, yes: bool, as_json: bool, **connection: str | None) -> None:
    """Remove the volume NAME and its data from TARGET.

    The server must have made the volume, and it must not be in use.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"nothing was removed: without a terminal, removing {name} from {target} needs --yes")
    if not yes:
        click.confirm(f"Remove volume {name} and its data from {target}?", abort=True, err=True)
    client = connect(connection)
    answer = client.delete(path("volumes", target, name))
    click.echo(answer.text if as_json else f"removed volume {printable(name)} from {printable(target)}")
