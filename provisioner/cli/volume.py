"""``lvp volume``: list, resize, remove, restore and adopt volumes of a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.completion import complete_target, complete_volume
from provisioner.cli.connection import connect, connection_options, json_option, path
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.formatting import printable, size, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.starting import Gibibytes, print_if_more
from provisioner.client.requests import RESIZE_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Mapping

# Seconds to wait for a restore: three LVM changes, each of which may wait for a lock.
CHANGE_TIMEOUT = 300.0


@click.group(cls=SuggestingGroup)
def volume() -> None:
    """List, resize, remove, restore and adopt volumes of a server."""


@volume.command("list", cls=SectionedCommand, examples=["lvp volume list", "lvp volume list --replaced"])
@click.option("--replaced", is_flag=True, help="List the replaced volumes that can be restored.")
@click.option("--offset", type=click.IntRange(min=0), default=0, metavar="N", help="Skip the first N.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="N", help="Show at most N.  [default: 100]")
@json_option
@connection_options
def list_volumes(replaced: bool, offset: int, limit: int, as_json: bool, **connection: str | None) -> None:
    """List the volumes that the server made and that still exist.

    If a target does not answer, standard error names it, and the exit status is 5.
    """
    client = connect(connection)
    answer = client.get(
        path("volumes", "replaced") if replaced else path("volumes"), {"offset": offset, "limit": limit}
    )
    if as_json:
        click.echo(answer.text)
    elif replaced:
        _show_replaced(answer.data)
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
            f"cloud-init seed of {entry['seed_of']}" if "seed_of" in entry else entry["image_url"],
        ]
        for entry in page["volumes"]
    ]
    click.echo(table(["TARGET", "NAME", "SIZE", "CREATED", "PATH", "IMAGE"], rows))
    print_if_more(page, len(rows))


def _show_replaced(page: Mapping[str, Any]) -> None:
    rows = [
        [
            entry["target"],
            entry["name"],
            size(entry["size_bytes"]),
            _whose(entry),
            entry["replaced_at"],
            entry["kept_until"],
            entry["kept_as"],
        ]
        for entry in page["replaced"]
    ]
    click.echo(table(["TARGET", "NAME", "SIZE", "MADE BY", "REPLACED", "KEPT UNTIL", "KEPT AS"], rows))
    print_if_more(page, len(rows))


def _whose(entry: Mapping[str, Any]) -> str:
    return "this service" if entry["ours"] else "others"


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
    examples=[
        "lvp volume remove fast web-01",
        "lvp volume remove fast web-01 --yes    # in a script",
        "lvp volume remove fast web-01 --replaced",
    ],
)
@click.argument("target", shell_complete=complete_target)
@click.argument("name", shell_complete=complete_volume)
@click.option("--replaced", is_flag=True, help="The replaced volume of that name that is kept, not the present one.")
@click.option("--kept-as", metavar="KEPT_AS", help="Which one, if several are kept; implies --replaced.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed without a terminal.")
@json_option
@connection_options
def remove(
    target: str, name: str, replaced: bool, kept_as: str | None, yes: bool, as_json: bool, **connection: str | None
) -> None:
    """Remove the volume NAME and its data from TARGET.

    The server must have made the volume, and it must not be in use. With --replaced, remove the replaced volume that
    is kept for 'lvp volume restore', and leave the present one alone.
    """
    replaced = replaced or kept_as is not None
    what = f"the replaced volume {name}" if replaced else f"volume {name}"
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"nothing was removed: without a terminal, removing {what} from {target} needs --yes")
    if not yes:
        click.confirm(f"Remove {what} and its data from {target}?", abort=True, err=True)
    client = connect(connection)
    if replaced:
        query = {} if kept_as is None else {"kept_as": kept_as}
        answer = client.delete(path("volumes", target, name, "replaced"), query, limit=CHANGE_TIMEOUT)
    else:
        answer = client.delete(path("volumes", target, name))
    seed = f" and its cloud-init seed {printable(answer.data['seed'])}" if "seed" in answer.data else ""
    click.echo(answer.text if as_json else f"removed {printable(what)}{seed} from {printable(target)}")


@volume.command(cls=SectionedCommand, examples=["lvp volume restore fast web-01"])
@click.argument("target")
@click.argument("name")
@click.option("--kept-as", metavar="KEPT_AS", help="Which one, if several volumes of that name are kept.")
@json_option
@connection_options
def restore(target: str, name: str, kept_as: str | None, as_json: bool, **connection: str | None) -> None:
    """Bring back the volume NAME that was replaced on TARGET.

    The volume that has the name now must not be in use. It is kept in its turn, so a restore can be undone.
    'lvp volume list --replaced' shows what can be restored.
    """
    client = connect(connection)
    wanted = None if kept_as is None else {"kept_as": kept_as}
    answer = client.post(path("volumes", target, name, "restore"), wanted, limit=CHANGE_TIMEOUT)
    if as_json:
        click.echo(answer.text)
        return
    click.echo(f"restored volume {printable(name)} on {printable(target)}")
    if (replaced := answer.data.get("replaced")) is not None:
        kept_as, until = printable(replaced["kept_as"]), printable(replaced["kept_until"])
        click.echo(f"the volume that it replaced is kept as {kept_as} until {until}")


@volume.command(cls=SectionedCommand, examples=["lvp volume adopt fast web-01"])
@click.argument("target")
@click.argument("name")
@json_option
@connection_options
def adopt(target: str, name: str, as_json: bool, **connection: str | None) -> None:
    """Let the server treat the volume NAME on TARGET as its own.

    The content is not changed, and the volume may be in use. It is then listed, and can be removed.
    """
    client = connect(connection)
    answer = client.post(path("volumes", target, name, "adopt"))
    click.echo(answer.text if as_json else f"adopted volume {printable(name)} on {printable(target)}")
