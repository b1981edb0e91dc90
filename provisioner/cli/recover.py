"""``lvp recover``: the recovery that the server does at its start, for a server that does not run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from provisioner.cli.exit_status import CliError, cli_errors
from provisioner.cli.help_page import SectionedCommand
from provisioner.cli.host_config import config_options, host_config

if TYPE_CHECKING:
    from provisioner.contracts import BlockTarget


@click.command(cls=SectionedCommand, examples=["lvp recover --config /etc/libvirt-volume-provisioner/config.toml"])
@config_options
@click.option(
    "--take-over", is_flag=True, help="Also recover volumes of other installations whose state directories are lost."
)
def recover(config_file: Path | None, data_dir: Path | None, take_over: bool) -> None:
    """Remove what interrupted jobs left on the targets: staged volumes, half-done swaps.

    Prints one line for each decision. Safe to repeat. The server does this at every start; this command is for hosts
    where it will not be started. Fails while the server runs.
    """
    with cli_errors():
        import trio

        from provisioner import registry
        from provisioner.linux import state_lock

        config = host_config(config_file, data_dir)
        targets = registry.load().build(config).targets
        if not take_over and not Path(config.state_directory).exists():
            click.echo(f"{config.state_directory} does not exist: no job has run, and nothing was left behind")
            return
        with state_lock.locked(Path(config.state_directory)):
            failed = [name for name, target in targets.items() if not trio.run(_recover, name, target, take_over)]
    if failed:
        raise CliError(f"not recovered: {', '.join(failed)}")


async def _recover(name: str, target: BlockTarget, take_over: bool) -> bool:
    from provisioner.contracts.errors import ProvisionerError

    try:
        decisions = await (target.take_over() if take_over else target.recover(frozenset()))
    except ProvisionerError as error:
        click.echo(f"{name}: {error.message}", err=True)
        return False
    for decision in decisions or ["nothing was left behind"]:
        click.echo(f"{name}: {decision}")
    return True
