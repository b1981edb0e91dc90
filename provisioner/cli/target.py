"""``lvp target``: list the block targets of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.connection import connect, connection_options, json_option, path
from provisioner.cli.formatting import size, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.group(cls=SuggestingGroup)
def target() -> None:
    """Show the block targets of a server."""


@target.command("list", cls=SectionedCommand, examples=["lvp target list"])
@json_option
@connection_options
def list_targets(as_json: bool, **connection: str | None) -> None:
    """List the block targets: plugin, space, thin pool use and health. A * marks the default.

    "+ 20.0 GiB kept" is the space of replaced volumes that a job may remove if it needs room.
    """
    answer = connect(connection).get(path("targets"))
    if as_json:
        click.echo(answer.text)
        return
    rows = [_row(entry) for entry in answer.data["targets"]]
    click.echo(table(["TARGET", "PLUGIN", "FREE", "SIZE", "POOL", "HEALTH"], rows))


def _row(entry: Mapping[str, Any]) -> list[object]:
    free, total = (size(entry[key]) if key in entry else "" for key in ("free_bytes", "size_bytes"))
    if entry.get("freeable_bytes"):
        free += f" + {size(entry['freeable_bytes'])} kept"
    fill = entry.get("thin_pool") or {}
    pool = ", ".join(f"{key.removesuffix('_percent')} {value:.0f} %" for key, value in fill.items())
    name = entry["name"] + (" *" if entry["default"] else "")
    return [name, entry["plugin"], free, total, pool, entry.get("reason", "ok")]
