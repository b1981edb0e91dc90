"""The hosts of a command, clients for them, and the rows that it prints of them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli import paths
from provisioner.cli.client import Client
from provisioner.cli.connection import hosts_text, settings_of
from provisioner.cli.exit_status import CliError
from provisioner.cli.fleet.calls import Limits, each
from provisioner.cli.fleet.failures import Failure, FleetError
from provisioner.cli.formatting import table
from provisioner.cli.host_settings import resolve_hosts
from provisioner.cli.transport import TlsContexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from provisioner.cli.fleet.calls import Call
    from provisioner.cli.host_settings import Host

R = TypeVar("R")


@dataclass(frozen=True)
class Fleet:
    """Hosts in the order in which they were named, and how to ask them."""

    hosts: Sequence[Host]
    limits: Limits
    contexts: TlsContexts = field(default_factory=TlsContexts)

    def __post_init__(self) -> None:
        """Check the credentials before anything is sent. Raises CliError."""
        for host in self.hosts:
            try:
                self.contexts.context(host.settings)
            except CliError as error:
                raise CliError(f"{host.name}: {error.message}", error.status) from error
        exposed = [host for host in self.hosts if host.settings.exposes_token]
        if exposed:
            others = f" and {len(exposed) - 1} others" if len(exposed) > 1 else ""
            click.echo(f"Warning: the token is sent unencrypted to {exposed[0].name}{others}; use https.", err=True)

    def client(self, host: Host) -> Client:
        """Return a client whose calls stay within the limit."""
        return Client(host.settings, budget=self.limits.seconds, contexts=self.contexts)

    def ask(self, work: Callable[[Client, Call], R]) -> list[R | Failure]:
        """Return the result of ``work`` for each host, in their order."""
        with Counter(len(self.hosts)) as counter:
            return each(
                self.hosts,
                lambda host, call: work(self.client(host), call),
                self.limits,
                lambda _number, _result: counter.count(),
            )

    def failures(self, results: Sequence[object]) -> list[tuple[str, str]]:
        """Return the names and messages of the hosts that failed."""
        pairs = zip(self.hosts, results, strict=True)
        return [(host.name, result.message) for host, result in pairs if isinstance(result, Failure)]

    def raise_failures(self, results: Sequence[object]) -> None:
        """Raise FleetError if hosts failed."""
        failures = self.failures(results)
        if failures:
            raise FleetError(failures, len(self.hosts))


def fleet_of(parameters: Mapping[str, Any], named: str | None = None) -> Fleet:
    """Return the hosts of ``--hosts``, or those that ``named`` stands for. Raises CliError."""
    flags = settings_of(parameters)
    text = hosts_text(flags) or ""
    if flags.get("url") is not None:
        raise click.UsageError("--batch and --url exclude each other")
    hosts = resolve_hosts(named or text, flags, os.environ, paths.client_file())
    return Fleet(hosts, Limits(flags["parallel"], flags["host_timeout"]))


class Counter:
    """On a terminal, a line on standard error that counts the hosts that have answered, and is gone at the end."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        dumb = os.environ.get("TERM") in {None, "dumb", "unknown"}
        self._shown = total > 1 and not dumb and sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown and self._done:
            click.echo("\r\x1b[K", nl=False, err=True)

    def count(self) -> None:
        """Count one more."""
        self._done += 1
        if self._shown:
            click.echo(f"\r{self._done} of {self._total}\x1b[K", nl=False, err=True)


def print_rows(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table whose first column is the host."""
    click.echo(table(header, list(rows)))


def print_object(host: str, data: Mapping[str, Any]) -> None:
    """Print an object of the API on one line, with the host first."""
    click.echo(json.dumps({"host": host, **data}, ensure_ascii=False, separators=(",", ":")))
