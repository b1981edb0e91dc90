"""Waits for jobs on many hosts: a table on a terminal, lines in a pipe, or objects; then one result for each job."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.exit_status import ExitStatus
from provisioner.cli.fleet.failures import Failure, FleetError
from provisioner.cli.fleet.feeds import SILENCE, Feed
from provisioner.cli.fleet.hosts import fleet_of, print_object
from provisioner.cli.fleet.job_displays import display_of
from provisioner.cli.fleet.overview import Selection, active_jobs
from provisioner.cli.formatting import printable, span
from provisioner.cli.progress import Speed
from provisioner.client.waiting import ENDED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.fleet.feeds import News
    from provisioner.cli.fleet.hosts import Fleet
    from provisioner.cli.fleet.job_displays import JobDisplay

# Seconds between two updates of a display.
UPDATE = 0.25


@dataclass(slots=True)
class WatchedJob:
    """A job on a host, which ``host`` numbers, as it was last heard of."""

    host: int
    job_id: str
    volume_name: str
    job: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    # Why nothing more is heard of it.
    lost: str | None = None
    speed: Speed = field(default_factory=Speed)

    @property
    def status(self) -> str:
        """Its status; ``pending`` until it was heard of."""
        return str(self.job.get("status", "pending"))

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ENDED or self.lost is not None

    def hear(self, job: Mapping[str, Any]) -> None:
        """Take what the host says of it."""
        self.job, self.lost = job, None
        self.volume_name = str(job.get("volume_name") or self.volume_name)
        self.rate = self.speed.update(job.get("progress") or {}) if self.status == "running" else None

    def failure(self) -> str | None:
        """Return why it did not complete, None if it did."""
        if self.status == "completed":
            return None
        if self.status == "failed":
            return f"job {self.job_id} failed: {self.job.get('error', 'no reason given')}"
        if self.status == "cancelled":
            return f"job {self.job_id} was cancelled and rolled back"
        return f"job {self.job_id} continues there; {self.lost}"


class _Wait:
    """The jobs, and since when hosts are away."""

    def __init__(self, fleet: Fleet, jobs: Sequence[WatchedJob], patience: float) -> None:
        self._fleet, self.jobs, self._patience = fleet, jobs, patience
        self._by_id = {(job.host, job.job_id): job for job in jobs}
        self._away: dict[int, float] = {}
        self._told: set[int] = set()
        by_host: dict[int, list[str]] = {}
        for job in jobs:
            by_host.setdefault(job.host, []).append(job.job_id)
        self.feed = Feed(fleet, by_host)

    @property
    def is_over(self) -> bool:
        return all(job.is_over for job in self.jobs)

    def run(self, display: JobDisplay) -> None:
        self.feed.start()
        drawn = 0.0
        display.draw(self.jobs)
        while not self.is_over:
            news = self.feed.next(max(0.0, drawn + UPDATE - time.monotonic()))
            if news is not None:
                self._hear(news, display)
            if time.monotonic() - drawn >= UPDATE:
                self._count_silence()
                display.draw(self.jobs)
                drawn = time.monotonic()

    def _hear(self, news: News, display: JobDisplay) -> None:
        if news.error is not None:
            self._hear_error(news, news.error, display)
            return
        self._away.pop(news.host, None)
        self._told.discard(news.host)
        if news.job is not None:
            job = self._by_id.get((news.host, str(news.job["job_id"])))
            if job is not None and job.job != news.job:
                job.hear(news.job)
                display.show(job)

    def _hear_error(self, news: News, error: str, display: JobDisplay) -> None:
        since = self._away.setdefault(news.host, time.monotonic())
        left = since + self._patience - time.monotonic()
        if news.final or left <= 0:
            self._lose(news.host, error)
        elif news.host not in self._told:
            self._told.add(news.host)
            display.note(f"{self._fleet.hosts[news.host].name}: no answer, retrying for {span(left)}; {error}")

    def _count_silence(self) -> None:
        for host in self.feed.silent(SILENCE + self._patience):
            self._lose(host, f"nothing was heard from the host for {span(SILENCE + self._patience)}")

    def _lose(self, host: int, error: str) -> None:
        for job in self.jobs:
            if job.host == host and not job.is_over:
                job.lost = error


def watch_jobs(
    parameters: Mapping[str, Any], selected: Mapping[str, str | None], patience: float, *, as_json: bool
) -> None:
    """Show the selected jobs that are active now until they have ended. Raises FleetError if some did not complete."""
    fleet = fleet_of(parameters)
    active, found = active_jobs(fleet, Selection(**selected))
    failed = fleet.failures(found)
    if as_json:
        for host, result in zip(fleet.hosts, found, strict=True):
            if isinstance(result, Failure):
                print_object(host.name, result.row())
    jobs = [WatchedJob(one.host, str(one.job["job_id"]), str(one.job.get("volume_name", ""))) for one in active]
    if not jobs:
        click.echo("No such job is pending or running.", err=True)
    count = len(jobs) + len(failed)
    failed += wait_for_jobs(fleet, jobs, patience, as_json=as_json)
    if failed:
        raise FleetError(failed, count, "jobs and hosts")


def wait_for_jobs(fleet: Fleet, jobs: Sequence[WatchedJob], patience: float, *, as_json: bool) -> list[tuple[str, str]]:
    """Show the jobs until they have ended; return the places and reasons of those that did not complete."""
    wait = _Wait(fleet, jobs, patience)
    display = display_of([host.name for host in fleet.hosts], as_json=as_json)
    try:
        with display:
            wait.run(display)
    except KeyboardInterrupt:
        _say_stopped(fleet, jobs)
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    finally:
        wait.feed.stop()
    display.end(jobs)
    states = Counter("unknown" if job.lost else job.status for job in jobs)
    if jobs:
        click.echo(", ".join(f"{count} {state}" for state, count in sorted(states.items())), err=True)
    for job in jobs:
        for warning in job.job.get("warnings", ()):
            click.echo(printable(f"{fleet.hosts[job.host].name} {job.volume_name}: warning: {warning}"), err=True)
    pairs = [(f"{fleet.hosts[job.host].name} {job.volume_name}".strip(), job.failure()) for job in jobs]
    return [(place, reason) for place, reason in pairs if reason is not None]


def _say_stopped(fleet: Fleet, jobs: Sequence[WatchedJob]) -> None:
    left = [job for job in jobs if not job.is_over]
    noun = "job continues" if len(left) == 1 else "jobs continue"
    names = ",".join(dict.fromkeys(fleet.hosts[job.host].name for job in left))
    hosts = names if len(names) <= 200 else "HOSTS"
    click.echo(f"\nStopped waiting; {len(left)} {noun}.", err=True)
    click.echo(f"  lvp job watch --hosts '{hosts}'          to wait again", err=True)
    click.echo(f"  lvp job cancel --hosts '{hosts}' --all   to cancel all that is active there", err=True)
