"""``lvp config``: check, show and import a server's configuration."""

from __future__ import annotations

from pathlib import Path

import click

from provisioner.cli import paths
from provisioner.cli.exit_status import cli_errors
from provisioner.cli.help_page import SectionedCommand


@click.group()
def config() -> None:
    """Check a server's configuration, show it with every default, or import one."""


@config.command(cls=SectionedCommand, examples=["lvp config check /etc/libvirt-volume-provisioner/config.toml"])
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check the configuration FILE, including the tables of installed plugins.

    Prints each error on a line of its own: where it is and what is allowed. The exit status is 0 if there are no
    errors. Starts and changes nothing.
    """
    with cli_errors():
        from provisioner import config as settings
        from provisioner import registry

        checked = settings.load(file)
        registry.load().build(checked)
    click.echo(f"{file}: no errors")


@config.command(cls=SectionedCommand, examples=["lvp config show > config.toml"])
@click.argument("file", type=click.Path(path_type=Path), required=False)
def show(file: Path | None) -> None:
    """Print FILE as the server reads it, with defaults and without secrets.

    Without FILE, prints what lvp serve uses without --config: a good start for your own file.
    """
    with cli_errors():
        from provisioner import config as settings

        shown = settings.load(file) if file else settings.embedded(paths.data_dir(), paths.DEFAULT_BIND, ())
        click.echo(settings.dump(shown), nl=False)


@config.command(
    "import-env",
    cls=SectionedCommand,
    examples=["lvp config import-env /etc/default/volume-provisioner > /etc/libvirt-volume-provisioner/config.toml"],
)
@click.argument("file", type=click.Path(path_type=Path))
def import_env(file: Path) -> None:
    """Convert the environment FILE of an older provisioner (MINIO_*, LVM_* and so on) and print the configuration.

    Secrets are not copied: the configuration names a file for each. Standard error lists what is left to do, and
    variables that have no meaning here. Writes no file; check the result with lvp config check.
    """
    with cli_errors():
        from provisioner.config.import_env import import_env as imported

        made = imported(file)
    click.echo(made.toml, nl=False)
    for sentence in made.to_do:
        click.echo(f"to do: {sentence}", err=True)
