"""``lvp whoami``: which caller the credential is, and what it may do."""

from __future__ import annotations

import click

from provisioner.cli.connection import connect, connection_options, json_option, path
from provisioner.cli.formatting import printable
from provisioner.cli.help_page import SectionedCommand


@click.command(cls=SectionedCommand, examples=["lvp whoami"])
@json_option
@connection_options
def whoami(as_json: bool, **connection: str | None) -> None:
    """Show who you are to the server: name, role, limits, and when the credential expires."""
    answer = connect(connection).get(path("whoami"))
    if as_json:
        click.echo(answer.text)
        return
    who = answer.data
    limits = {
        name: ", ".join(value) if isinstance(value, list) else value for name, value in who.get("limits", {}).items()
    }
    lines = {"name": f"{who['name']} ({who['via']})", "role": who["role"], **limits, "expires": who.get("expires_at")}
    click.echo("\n".join(printable(f"{name}: {value}") for name, value in lines.items() if value is not None))
