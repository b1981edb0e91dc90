"""``lvp plugins``: list the installed back ends."""

from __future__ import annotations

import click

from provisioner.cli.exit_status import cli_errors
from provisioner.cli.formatting import table
from provisioner.cli.help_page import SectionedCommand


@click.command(cls=SectionedCommand, examples=["lvp plugins"])
def plugins() -> None:
    """List the installed back ends.

    Prints sources, converters, targets, guards and observers, with the package that provides each.
    """
    with cli_errors():
        from provisioner import registry

        found = registry.load().describe()
    rows = [[entry.kind, entry.name, entry.distribution, entry.version] for entry in found]
    click.echo(table(["KIND", "NAME", "PACKAGE", "VERSION"], rows))
