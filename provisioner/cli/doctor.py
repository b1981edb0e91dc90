"""``lvp doctor``: what prevents the server from working on this host, and how to fix it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from provisioner.cli.exit_status import CliError, cli_errors
from provisioner.cli.help_page import SectionedCommand
from provisioner.cli.host_config import chosen_file, config_options, load

if TYPE_CHECKING:
    from pathlib import Path

    from provisioner.contracts import Finding


@click.command(cls=SectionedCommand, examples=["lvp doctor --config /etc/libvirt-volume-provisioner/config.toml"])
@config_options
def doctor(config_file: Path | None, data_dir: Path | None) -> None:
    """Check this host: configuration, certificates, secrets, addresses, targets, free space, tools, permissions.

    Prints one line for each check and, below a problem, how to fix it. A line that begins with ? could not be checked
    from here. Changes nothing. The exit status is 0 if there are no problems.
    """
    with cli_errors():
        import trio

        from provisioner import config_check, diagnosis, registry
        from provisioner.contracts.errors import ConfigError

        plugins, file = registry.load(), chosen_file(config_file, data_dir)
        if file is not None and (faults := config_check.check(file, plugins, files=False).faults):
            raise ConfigError("\n".join(faults))
        config = load(file, data_dir)
        findings = trio.run(diagnosis.examine, config, plugins.make(config))
    wrong = 0
    for about, found in findings.items():
        click.echo(f"{about}:")
        for finding in found or ():
            _show(finding)
            wrong += finding.ok is False
    if wrong:
        raise CliError(f"{wrong} problem{'s' if wrong > 1 else ''} found")
    click.echo("no problems found")


def _show(finding: Finding) -> None:
    mark = {True: "ok  ", False: "BAD ", None: "?   "}[finding.ok]
    click.echo(f"  {mark} {finding.what}")
    if not finding.ok and finding.fix:
        click.echo(f"       -> {finding.fix}")
