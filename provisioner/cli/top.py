"""``lvp top``: hosts, jobs, queues and pools as they change."""

from __future__ import annotations

from typing import Any

import click

from provisioner.cli.connection import connection_options, fleet_options, json_option
from provisioner.cli.help_page import SectionedCommand


@click.command(
    cls=SectionedCommand,
    examples=["lvp top", "lvp top --hosts 'kvm-[01-20]'", "lvp top --hosts rack-a --once --json"],
)
@click.option("--once", is_flag=True, help="Print one snapshot and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 3600),
    default=2.0,
    metavar="SECONDS",
    help="How often to show what has changed.  [default: 2]",
)
@json_option
@fleet_options
@connection_options
def top(once: bool, interval: float, as_json: bool, **connection: Any) -> None:
    """Show the hosts with their jobs, queues, rates, free space and thin pools, until q or Ctrl-C.

    Without a terminal that can be redrawn, prints a snapshot every --interval seconds. With --once, the exit status
    counts the hosts that did not answer.
    """
    from provisioner.cli.fleet.top import show_once, show_top

    if once:
        show_once(connection, as_json=as_json)
    else:
        show_top(connection, interval, as_json=as_json)
