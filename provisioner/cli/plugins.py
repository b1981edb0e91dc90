"""``lvp plugins``: which back ends are installed."""

from __future__ import annotations

import click

from provisioner.cli.exit_status import spoken_errors
from provisioner.cli.help_page import SectionedCommand
from provisioner.cli.wording import table


@click.command(cls=SectionedCommand, examples=["lvp plugins"])
def plugins() -> None:
    """List the installed back ends.

    Sources, converters, targets, guards and observers, with the package that brings them.
    """
    with spoken_errors():
        from provisioner import registry

        found = registry.load().describe()
    rows = [[entry.kind, entry.name, entry.distribution, entry.version] for entry in found]
    click.echo(table(["KIND", "NAME", "PACKAGE", "VERSION"], rows))
