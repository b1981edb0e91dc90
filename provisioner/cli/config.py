"""``lvp config``: check, show and import a server's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from provisioner.cli import paths
from provisioner.cli.exit_status import cli_errors
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.host_config import host_config, system_config

if TYPE_CHECKING:
    from provisioner.registry import Registry


@click.group(cls=SuggestingGroup)
def config() -> None:
    """Check a server's configuration, show it with every default, or import one."""


@config.command(cls=SectionedCommand, examples=["lvp config check", "lvp config check --host ./config.toml"])
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--host", is_flag=True, help="Also check on this host that the addresses in bind are free.")
@click.option(
    "--no-files", is_flag=True, help="Open no certificate, key or secret: for the configuration of another host."
)
def check(file: Path | None, host: bool, no_files: bool) -> None:
    """Check a configuration: every key, the tables of plugins, and the certificates, keys and secrets it names.

    Prints each error on a line of its own: where it is and what is allowed. The exit status is 0 if there are no
    errors. What cannot be checked from here, such as a systemd credential, is listed. Starts and changes nothing.
    """
    if file is None and (file := system_config()) is None:
        raise click.UsageError(f"name the file: there is no {paths.SYSTEM_CONFIG}")
    with cli_errors():
        from provisioner import config_check, registry
        from provisioner.contracts.errors import ConfigError

        report = config_check.check(file, registry.load(), files=not no_files, host=host)
        for line in report.unchecked:
            click.echo(line, err=True)
        if report.faults:
            raise ConfigError("\n".join(report.faults))
    click.echo(f"{file}: no errors")


@config.command(cls=SectionedCommand, examples=["lvp config show", "lvp config show --defaults > config.toml"])
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--defaults", is_flag=True, help="Print what lvp serve uses without any configuration file.")
def show(file: Path | None, defaults: bool) -> None:
    """Print FILE as the server reads it, with every default, also those of plugins, and without secrets."""
    if file is not None and defaults:
        raise click.UsageError("give FILE or --defaults, not both")
    with cli_errors():
        from provisioner import config as settings
        from provisioner import registry

        shown = host_config(file, paths.data_dir() if defaults else None)
        click.echo(settings.dump(shown, registry.load().make(shown).settings), nl=False)


@config.command(
    "import-env",
    cls=SectionedCommand,
    examples=["lvp config import-env /etc/default/volume-provisioner > /etc/libvirt-volume-provisioner/config.toml"],
)
@click.argument("file", type=click.Path(path_type=Path))
def import_env(file: Path) -> None:
    """Convert the environment FILE of an older provisioner (MINIO_*, LVM_* and so on) and print the configuration.

    Secrets are not copied: the configuration names a file for each. Standard error lists what is left to do, and
    variables that have no meaning here, with the reason. Fails if the result would not be valid, or would lose TLS.
    Writes no file.
    """
    with cli_errors():
        from provisioner import registry
        from provisioner.config.import_env import import_env as imported
        from provisioner.contracts.errors import ConfigError

        made = imported(file)
        if faults := _faults_of(made.toml, str(file), registry.load()):
            raise ConfigError("\n".join(faults))
    click.echo(made.toml, nl=False)
    for sentence in made.to_do:
        click.echo(f"to do: {sentence}", err=True)


def _faults_of(toml: str, origin: str, plugins: Registry) -> list[str]:
    """Return what is wrong with an imported configuration, except that it has no target: that is left to do."""
    import tomllib

    from provisioner.config import Faults, decode

    document, faults = tomllib.loads(toml), Faults(origin)
    decode(document, faults)
    plugins.check(document, faults)
    return [line for line in faults.lines if not line.startswith(f"{origin}: targets: is missing")]
