"""``lvp health``: show whether a server is up and accepts jobs."""

from __future__ import annotations

from typing import Any

import click

from provisioner.cli.connection import connect, connection_options, fleet_options, json_option, names_hosts
from provisioner.cli.formatting import printable
from provisioner.cli.help_page import SectionedCommand


@click.command(
    cls=SectionedCommand,
    examples=["lvp health --url https://kvm-7.example.org:8080", "lvp health --hosts 'kvm-[01-20]'"],
)
@click.option("--ready", is_flag=True, help="Check targets, cache and job store, and whether jobs are accepted.")
@json_option
@fleet_options
@connection_options
def health(ready: bool, as_json: bool, **connection: Any) -> None:
    """Show a server's status, version and uptime. Needs no token.

    The exit status is 0 if the server answers ("degraded" only means busy); with --ready, if it is ready.
    """
    if names_hosts(connection):
        from provisioner.cli.fleet.overview import show_health

        show_health(connection, ready=ready, as_json=as_json)
        return
    client = connect(connection)
    answer = client.get("/readyz" if ready else "/health")
    if as_json:
        click.echo(answer.text)
        return
    data = answer.data
    click.echo("ready" if ready else printable(f"{data['status']}, version {data['version']}, up {data['uptime']}"))
    for warning in data.get("warnings", ()):
        click.echo(printable(f"warning: {warning}"))
