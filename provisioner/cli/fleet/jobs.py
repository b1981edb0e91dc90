"""Jobs on many hosts: from what the user asked to requests, then one table, and the wait for their end."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from provisioner.cli import paths
from provisioner.cli.client_settings import read_document
from provisioner.cli.connection import hosts_text, path, settings_of
from provisioner.cli.fleet.batch import read_batch
from provisioner.cli.fleet.batch_fields import with_host
from provisioner.cli.fleet.failures import Failure, FleetError
from provisioner.cli.fleet.hosts import fleet_of, print_object, print_rows
from provisioner.cli.fleet.plans import show_plans
from provisioner.cli.fleet.submission import DONE, OLDER_IMAGE, Request, batch_key, submit_all
from provisioner.cli.host_settings import read_directory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from provisioner.cli.fleet.batch import Wanted
    from provisioner.cli.fleet.hosts import Fleet
    from provisioner.cli.fleet.submission import Submission
    from provisioner.cli.starting import Start


def submit_everywhere(
    parameters: Mapping[str, Any], where: str, wanted: Mapping[str, object], how: Start, *, dry_run: bool
) -> None:
    """Submit the same job on each of ``--hosts``. Raises FleetError if some failed."""
    fleet = fleet_of(parameters)
    _run(fleet, same_on_all(fleet, where, wanted, how.idempotency_key), how, dry_run=dry_run)


def submit_batch(file: Path, parameters: Mapping[str, Any], how: Start, *, dry_run: bool) -> None:
    """Submit the volumes of a batch file. Raises BatchError before anything is sent, FleetError if some failed."""
    given = hosts_text(settings_of(parameters))
    settings = paths.client_file()
    directory = read_directory(read_document(settings), settings)
    wanted = read_batch(file, directory.names, given)
    fleet = fleet_of(parameters, ",".join(dict.fromkeys(one.host for one in wanted)))
    _run(fleet, of_batch(fleet, wanted, how.idempotency_key), how, dry_run=dry_run)


def _run(fleet: Fleet, requests: Sequence[Request], how: Start, *, dry_run: bool) -> None:
    if dry_run:
        show_plans(fleet, requests, as_json=how.as_json)
    else:
        run_jobs(fleet, requests, wait=how.wait, patience=how.patience, as_json=how.as_json)


def same_on_all(fleet: Fleet, where: str, wanted: Mapping[str, object], key: str | None) -> list[Request]:
    """Return the same request for each host; ``{host}`` in its texts is the host's name."""
    body = {name: value for name, value in wanted.items() if value is not None}
    return [
        Request(number, where, with_host(body, host.name), key or str(uuid.uuid4()))
        for number, host in enumerate(fleet.hosts)
    ]


def of_batch(fleet: Fleet, wanted: Sequence[Wanted], key: str | None) -> list[Request]:
    """Return the requests of a batch, whose second run repeats none that has completed."""
    numbers = {host.name: number for number, host in enumerate(fleet.hosts)}
    return [Request(numbers[one.host], path("jobs"), one.body, batch_key(one.body, key), again=True) for one in wanted]


def run_jobs(fleet: Fleet, requests: Sequence[Request], *, wait: bool, patience: float, as_json: bool) -> None:
    """Submit the jobs, print them, and wait for them if asked to. Raises FleetError if some failed."""
    results = submit_all(fleet, requests)
    if not (wait and as_json):  # only job objects go to standard output then, and errors
        _print(fleet, requests, results, as_json=as_json)
    failed = [
        (_name(fleet, request), result.message)
        for request, result in zip(requests, results, strict=True)
        if isinstance(result, Failure)
    ]
    if wait:
        from provisioner.cli.fleet.waiting import WatchedJob, wait_for_jobs

        jobs = [
            WatchedJob(request.host, result.job_id, str(request.body.get("volume_name", "")))
            for request, result in zip(requests, results, strict=True)
            if not isinstance(result, Failure) and result.result not in {DONE, OLDER_IMAGE}
        ]
        if as_json:
            _print_failures(fleet, requests, results)
        failed += wait_for_jobs(fleet, jobs, patience, as_json=as_json)
    if failed:
        raise FleetError(failed, len(requests), "jobs")


def _print(
    fleet: Fleet, requests: Sequence[Request], results: Sequence[Submission | Failure], *, as_json: bool
) -> None:
    rows: list[list[object]] = []
    for request, result in zip(requests, results, strict=True):
        host, volume = fleet.hosts[request.host].name, request.body.get("volume_name")
        if as_json:
            print_object(host, _object(volume, result))
        elif isinstance(result, Failure):
            rows.append([host, volume, "", "failed"])
        else:
            after = f", after {result.after}" if result.after else ""
            rows.append([host, volume, result.job_id, result.result + after])
    if not as_json:
        print_rows(["HOST", "VOLUME", "JOB", "RESULT"], rows)


def _print_failures(fleet: Fleet, requests: Sequence[Request], results: Sequence[Submission | Failure]) -> None:
    for request, result in zip(requests, results, strict=True):
        if isinstance(result, Failure):
            print_object(fleet.hosts[request.host].name, _object(request.body.get("volume_name"), result))


def _object(volume: object, result: Submission | Failure) -> dict[str, Any]:
    named = {} if volume is None else {"volume_name": volume}
    if isinstance(result, Failure):
        return {**named, **result.row()}
    after = {"after": result.after.split()[0]} if result.after else {}
    return {**named, "job_id": result.job_id, "result": result.result, **after}


def _name(fleet: Fleet, request: Request) -> str:
    return " ".join([fleet.hosts[request.host].name, *filter(None, [str(request.body.get("volume_name", ""))])])
