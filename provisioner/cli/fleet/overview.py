"""``--hosts`` for ``lvp health``, ``lvp job list`` and ``lvp job cancel``: one round of requests, one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.client import CANCEL_TIMEOUT, ApiError
from provisioner.cli.connection import path
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.fleet.answers import health_of, job_of
from provisioner.cli.fleet.calls import Limits, each
from provisioner.cli.fleet.failures import Failure, FleetError, failure_of
from provisioner.cli.fleet.hosts import fleet_of, print_object, print_rows
from provisioner.cli.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.client import Client
    from provisioner.cli.fleet.calls import Call
    from provisioner.cli.fleet.hosts import Fleet

# The most jobs of a host that are selected: what one page may have.
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs a command is about: those with this id (or its beginning), volume and correlation id."""

    job_id: str | None = None
    volume_name: str | None = None
    correlation_id: str | None = None

    def params(self) -> dict[str, str]:
        """Return the query of ``GET /jobs``."""
        fields = {"id_prefix": self.job_id, "volume_name": self.volume_name, "correlation_id": self.correlation_id}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class HostJob:
    """A job of one of the fleet's hosts; ``host`` is its number."""

    host: int
    job: Mapping[str, Any]


def show_health(parameters: Mapping[str, Any], *, ready: bool, as_json: bool) -> None:
    """Print the health of each host. Raises FleetError if some do not answer, or are not ready."""
    fleet = fleet_of(parameters)
    results = fleet.ask(lambda client, _call: health_of(client.get("/readyz" if ready else "/health").data))
    rows: list[list[object]] = []
    for host, result in zip(fleet.hosts, results, strict=True):
        if as_json:
            print_object(host.name, result.row() if isinstance(result, Failure) else result)
        elif isinstance(result, Failure):
            rows.append([host.name, "not ready" if result.code == 503 else result.error, "", "", ""])
        else:
            warnings = "; ".join(map(str, result.get("warnings", ())))
            rows.append([host.name, result["status"], result.get("version"), result.get("uptime"), warnings])
    if not as_json:
        print_rows(["HOST", "STATUS", "VERSION", "UPTIME", "WARNINGS"], rows)
    fleet.raise_failures(results)


def show_jobs(parameters: Mapping[str, Any], filters: Mapping[str, str | int], *, as_json: bool) -> None:
    """Print the jobs of all hosts: by host, and then the newest first. Raises FleetError."""
    from provisioner.cli.job import job_row

    fleet = fleet_of(parameters)

    def newest(client: Client, _call: Call) -> tuple[list[Mapping[str, Any]], int]:
        page = client.get(path("jobs"), filters).data
        return [job_of(job) for job in page["jobs"]], int(page["count"])

    results = fleet.ask(newest)
    rows: list[list[object]] = []
    more: list[str] = []
    for host, result in zip(fleet.hosts, results, strict=True):
        if isinstance(result, Failure):
            if as_json:
                print_object(host.name, result.row())
            continue
        jobs, count = result
        for job in jobs:
            if as_json:
                print_object(host.name, job)
            else:
                rows.append([host.name, *job_row(job)])
        more += [f"{host.name}: {len(jobs)} of {count}; more with --limit"] if count > len(jobs) else []
    if not as_json:
        print_rows(["HOST", "JOB", "STATUS", "PROGRESS", "VOLUME", "CREATED", "IMAGE"], rows)
    if more:
        click.echo(printable_lines(more), err=True)
    fleet.raise_failures(results)


def active_jobs(fleet: Fleet, selection: Selection) -> tuple[list[HostJob], list[object]]:
    """Return the selected jobs that are pending or running, the oldest of a host first; and each host's result."""

    def active(client: Client, call: Call) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for status in ("running", "pending"):
            call.beat()
            page = client.get(path("jobs"), {**selection.params(), "status": status, "limit": _PAGE}).data
            found += [job for job in map(job_of, page["jobs"]) if _is_meant(job, selection)]
        return sorted(found, key=lambda job: str(job["created_at"]))

    results = fleet.ask(active)
    jobs = [
        HostJob(number, job)
        for number, result in enumerate(results)
        if not isinstance(result, Failure)
        for job in {str(job["job_id"]): job for job in result}.values()  # one that began to run is in both lists
    ]
    return jobs, list(results)


def _is_meant(job: Mapping[str, Any], selection: Selection) -> bool:
    """Return whether the selection names the job: a server that ignores a filter must not decide what is cancelled."""
    return (
        str(job["job_id"]).startswith(selection.job_id or "")
        and selection.volume_name in {None, job.get("volume_name")}
        and selection.correlation_id in {None, job.get("correlation_id")}
    )


def cancel_jobs(parameters: Mapping[str, Any], selected: Mapping[str, str | None], *, as_json: bool) -> None:
    """Cancel the selected active jobs, and print what became of each. Raises FleetError, CliError if there are none."""
    fleet, selection = fleet_of(parameters), Selection(**selected)
    jobs, found = active_jobs(fleet, selection)
    refused = fleet.failures(found)
    if selection.job_id is not None and len(jobs) > 1:
        names = ", ".join(f"{job.job['job_id']} on {fleet.hosts[job.host].name}" for job in jobs)
        raise CliError(f"the id is the beginning of several; give more of it: {names}", ExitStatus.REFUSED)
    if not jobs and not refused:
        raise CliError("no such job is pending or running", ExitStatus.REFUSED)

    def cancel(job: HostJob, _call: Call) -> Mapping[str, Any] | Failure:
        try:
            client = fleet.client(fleet.hosts[job.host])
            return client.post(path("jobs", str(job.job["job_id"]), "cancel"), limit=CANCEL_TIMEOUT).data
        except ApiError as error:
            return failure_of(error)

    # A cancel answers when the job is rolled back, which has its own limit.
    results = each(jobs, cancel, Limits(fleet.limits.parallel, CANCEL_TIMEOUT))
    _print_cancelled(fleet, jobs, results, as_json=as_json)
    if as_json:
        for host, result in zip(fleet.hosts, found, strict=True):
            if isinstance(result, Failure):
                print_object(host.name, result.row())
    pairs = zip(jobs, results, strict=True)
    failed = [(_place(fleet, job), result.message) for job, result in pairs if isinstance(result, Failure)]
    if refused or failed:
        raise FleetError(refused + failed, len(jobs) + len(refused), "hosts and jobs" if refused else "jobs")


def _print_cancelled(
    fleet: Fleet, jobs: Sequence[HostJob], results: Sequence[Mapping[str, Any] | Failure], *, as_json: bool
) -> None:
    rows = []
    for job, result in zip(jobs, results, strict=True):
        host = fleet.hosts[job.host].name
        if as_json:
            named = {"job_id": job.job["job_id"]}
            print_object(host, {**named, **(result.row() if isinstance(result, Failure) else result)})
        else:
            state = "failed" if isinstance(result, Failure) else "cancelled"
            rows.append([host, job.job["job_id"], job.job.get("volume_name"), state])
    if not as_json and jobs:
        print_rows(["HOST", "JOB", "VOLUME", "RESULT"], rows)


def _place(fleet: Fleet, job: HostJob) -> str:
    return f"{fleet.hosts[job.host].name} {job.job['job_id']}"


def printable_lines(lines: Sequence[str]) -> str:
    """Return lines that are safe for a terminal."""
    return "\n".join(map(printable, lines))
