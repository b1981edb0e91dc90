"""``lvp source``: list the image sources of a server."""

from __future__ import annotations

import click

from provisioner.cli.connection import connect, connection_options, json_option, path
from provisioner.cli.formatting import table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup


@click.group(cls=SuggestingGroup)
def source() -> None:
    """Show the image sources of a server."""


@source.command("list", cls=SectionedCommand, examples=["lvp source list"])
@json_option
@connection_options
def list_sources(as_json: bool, **connection: str | None) -> None:
    """List the sources of images: plugin, how their URLs begin, and health."""
    answer = connect(connection).get(path("sources"))
    if as_json:
        click.echo(answer.text)
        return
    rows = [
        [entry["name"], entry["plugin"], " ".join(entry["urls"]), entry.get("reason", "ok")]
        for entry in answer.data["sources"]
    ]
    click.echo(table(["SOURCE", "PLUGIN", "URLS", "HEALTH"], rows))
