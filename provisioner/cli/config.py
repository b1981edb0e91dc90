"""``lvp config``: check, show and import a configuration before a server is started with it."""

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
    """Check FILE: keys, values, and what the installed plugins say of their tables.

    Prints every fault on a line of its own, with where it is and what is allowed; the exit status is 0 when there
    is none. Nothing is started and nothing changed.
    """
    with cli_errors():
        from provisioner import config as settings
        from provisioner import registry

        checked = settings.load(file)
        registry.load().build(checked)
    click.echo(f"{file}: no faults")


@config.command(cls=SectionedCommand, examples=["lvp config show > config.toml"])
@click.argument("file", type=click.Path(path_type=Path), required=False)
def show(file: Path | None) -> None:
    """Show FILE as the server reads it, defaults filled in and secrets left out.

    Without FILE: what lvp serve uses when it gets none, a good start for a file of your own.
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
    """Turn the environment FILE of an older provisioner (MINIO_*, LVM_* and so on) into a configuration, and print it.

    What is left to do is said on standard error: secrets are not copied but pointed at, and variables that mean nothing
    here are named. Nothing is written; check the result with lvp config check.
    """
    with cli_errors():
        from provisioner.config.import_env import import_env as imported

        made = imported(file)
    click.echo(made.toml, nl=False)
    for sentence in made.to_do:
        click.echo(f"to do: {sentence}", err=True)
