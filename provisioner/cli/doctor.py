"""``lvp doctor``: what prevents the server from working on this host, and how to fix it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli.exit_status import CliError, cli_errors
from provisioner.cli.help_page import SectionedCommand
from provisioner.cli.host_config import config_options, host_config

if TYPE_CHECKING:
    from pathlib import Path

    from provisioner.contracts import Finding


@click.command(cls=SectionedCommand, examples=["lvp doctor --config /etc/libvirt-volume-provisioner/config.toml"])
@config_options
def doctor(config_file: Path | None, data_dir: Path | None) -> None:
    """Check this host: volume groups, pools, free space, tools, permissions, and what the host scans.

    Prints one line for each check and, below a problem, how to fix it. Changes nothing. The exit status is
    0 when nothing is wrong.
    """
    with cli_errors():
        import trio

        from provisioner import diagnosis, registry

        config = host_config(config_file, data_dir)
        findings = trio.run(diagnosis.examine, config, registry.load().build(config))
    wrong = 0
    for about, found in findings.items():
        click.echo(f"{about}:")
        for finding in found or ():
            _show(finding)
            wrong += not finding.ok
    if wrong:
        raise CliError(f"{wrong} problem{'s' if wrong > 1 else ''} found")
    click.echo("no problems found")


def _show(finding: Finding) -> None:
    click.echo(f"  {'ok  ' if finding.ok else 'BAD '} {finding.what}")
    if not finding.ok:
        click.echo(f"       -> {finding.fix}")
