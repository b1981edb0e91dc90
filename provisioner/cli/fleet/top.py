"""``lvp top``: gathers the state of the hosts, once or for as long as it is shown."""

from __future__ import annotations

import os
import queue
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from provisioner.cli import paths
from provisioner.cli.connection import hosts_text, path, settings_of
from provisioner.cli.exit_status import ExitStatus
from provisioner.cli.fleet.answers import health_of, job_of, target_of
from provisioner.cli.fleet.calls import Limits, each, start_thread
from provisioner.cli.fleet.failures import Failure
from provisioner.cli.fleet.feeds import Feed
from provisioner.cli.fleet.host_view import HostView
from provisioner.cli.fleet.hosts import Fleet, fleet_of, print_object
from provisioner.cli.fleet.screen import Screen, can_redraw
from provisioner.cli.fleet.top_page import page, snapshot
from provisioner.cli.output import flush

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.client import Client
    from provisioner.cli.fleet.calls import Call

# Seconds between two rounds of questions for health and space, and what each host adds: 200 hosts are asked every 15 s.
_ROUND, _ROUND_PER_HOST = 5.0, 0.05
# Seconds between the two looks of a snapshot at running jobs, from which the rates come.
_APART = 1.0
# Seconds between two looks at the keyboard.
_KEYS = 0.1


def show_once(parameters: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the state of each host. Raises FleetError if some did not answer."""
    fleet = _fleet(parameters)
    views = [HostView(host.name) for host in fleet.hosts]
    results = _look(fleet, views)
    _print(views, as_json=as_json)
    fleet.raise_failures(results)


def show_top(parameters: Mapping[str, Any], interval: float, *, as_json: bool) -> None:
    """Show the state of each host until q or Ctrl-C."""
    fleet = _fleet(parameters)
    views = [HostView(host.name) for host in fleet.hosts]
    live = _Live(fleet, views)
    try:
        if as_json or not can_redraw(os.environ):
            live.print_for_ever(interval, as_json=as_json)
        else:
            live.draw_until_quit(interval)
    except KeyboardInterrupt:
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    finally:
        live.stop()


def _fleet(parameters: Mapping[str, Any]) -> Fleet:
    """Return the hosts of ``--hosts``, or the one server of the settings."""
    flags = settings_of(parameters)
    if hosts_text(flags) is not None:
        return fleet_of(parameters)
    from provisioner.cli.client_settings import resolve
    from provisioner.cli.host_settings import Host

    settings = resolve(flags, os.environ, paths.client_file())
    name = urlsplit(settings.url).netloc or settings.url
    return Fleet([Host(name, settings)], Limits(flags["parallel"], flags["host_timeout"]))


def _look(fleet: Fleet, views: Sequence[HostView]) -> list[object]:
    """Ask each host for everything."""

    def look(client: Client, call: Call) -> dict[str, Any]:
        found = _facts(client, call)
        call.beat()
        running = _jobs(client, "running")
        call.beat()
        found["jobs"] = [*_jobs(client, "pending"), *running]
        if running:
            time.sleep(_APART)
            call.beat()
            found["jobs"] += _jobs(client, "running")
        return found

    results = fleet.ask(look)
    for view, result in zip(views, results, strict=True):
        if isinstance(result, Failure):
            view.error = result.message
            continue
        view.set_facts(result)
        for job in result["jobs"]:
            view.hear(job)
    return list(results)


def _jobs(client: Client, status: str) -> list[dict[str, Any]]:
    return [job_of(job) for job in client.get(path("jobs"), {"status": status, "limit": 1000}).data["jobs"]]


def _facts(client: Client, call: Call) -> dict[str, Any]:
    """Return what changes slowly: health and space."""
    health = client.get("/health").data
    call.beat()
    targets = client.get(path("targets")).data["targets"]
    return {"health": health_of(health), "targets": [target_of(target) for target in targets]}


def _print(views: Sequence[HostView], *, as_json: bool) -> None:
    if as_json:
        for view in views:
            print_object(view.name, view.body())
    else:
        click.echo("\n".join(snapshot(views)))
    flush()


class _Live:
    """State that follows the hosts: jobs by events, the rest by questions."""

    def __init__(self, fleet: Fleet, views: Sequence[HostView]) -> None:
        self._fleet, self._views = fleet, views
        self._feed = Feed(fleet, None)
        self._facts: queue.SimpleQueue[tuple[int, dict[str, Any] | Failure]] = queue.SimpleQueue()
        self._feed.start()
        start_thread(self._ask_for_ever)

    def stop(self) -> None:
        self._feed.stop()

    def _ask_for_ever(self) -> None:
        fleet = self._fleet
        pause = _ROUND + _ROUND_PER_HOST * len(fleet.hosts)
        while not self._feed.stopped.is_set():
            each(
                fleet.hosts,
                lambda host, call: _facts(fleet.client(host), call),
                fleet.limits,
                lambda number, result: self._facts.put((number, result)),
            )
            self._feed.stopped.wait(pause)

    def update(self, seconds: float) -> None:
        """Take all news of the next ``seconds``."""
        until = time.monotonic() + seconds
        while True:
            news = self._feed.next(until - time.monotonic())
            while not self._facts.empty():
                number, result = self._facts.get()
                self._views[number].set_result(result)
            if news is not None:
                self._views[news.host].take(news)
            elif time.monotonic() >= until:
                return

    def print_for_ever(self, interval: float, *, as_json: bool) -> None:
        while True:
            self.update(interval)
            _print(self._views, as_json=as_json)
            if not as_json:
                click.echo()

    def draw_until_quit(self, interval: float) -> None:
        with Screen() as screen:
            drawn, size = 0.0, (0, 0)
            while not set(screen.pressed()) & set("qQ"):
                if time.monotonic() - drawn >= interval or screen.size() != size or not drawn:
                    drawn, size = time.monotonic(), screen.size()
                    screen.draw(page(self._views, *size, colors=not os.environ.get("NO_COLOR")))
                self.update(_KEYS)
                if drawn and not self._is_known and time.monotonic() - drawn > _KEYS:
                    drawn = 0.0  # the first answers are shown as they come

    @property
    def _is_known(self) -> bool:
        return all(view.health or view.error for view in self._views)
