"""``lvp health``: show whether a server is up and accepts jobs."""

from __future__ import annotations

import click

from provisioner.cli.connection import connect, connection_options, json_option
from provisioner.cli.formatting import printable
from provisioner.cli.help_page import SectionedCommand


@click.command(cls=SectionedCommand, examples=["lvp health --url https://kvm-7.example.org:8080"])
@click.option("--ready", is_flag=True, help="Check targets, cache and job store, and whether jobs are accepted.")
@json_option
@connection_options
def health(ready: bool, as_json: bool, **connection: str | None) -> None:
    """Show a server's status, version and uptime. Needs no token.

    The exit status is 0 if the server answers ("degraded" only means busy); with --ready, if it is ready.
    """
    client = connect(connection)
    answer = client.get("/readyz" if ready else "/health")
    if as_json:
        click.echo(answer.text)
        return
    data = answer.data
    click.echo("ready" if ready else printable(f"{data['status']}, version {data['version']}, up {data['uptime']}"))
    for warning in data.get("warnings", ()):
        click.echo(printable(f"warning: {warning}"))
