"""Follows a job until it ends, by events or else by polling, and sets the exit status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from provisioner.cli.client import Answer
from provisioner.cli.connection import path
from provisioner.cli.exit_status import CliError, ExitStatus, with_reason
from provisioner.cli.formatting import printable
from provisioner.cli.polling import STOPPING, poll, poll_once
from provisioner.client.waiting import ENDED, FIRST_RETRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provisioner.cli.client import Client
    from provisioner.cli.polling import RetryWindow
    from provisioner.cli.progress import Display


def follow(client: Client, job_id: str, patience: RetryWindow) -> Iterator[Answer]:
    """Yield the job at each change, until it has ended.

    Polls if no events come: from an older server, through a proxy that keeps them back, or if too many clients read
    them. The first request must succeed; later ones are retried. Raises ApiError or UnreachableError.
    """
    answer = client.get(path("jobs", job_id))
    yield answer
    events = True
    while events and answer.data.get("status") not in ENDED:
        events = False
        for latest in _events(client, job_id):
            events = True
            if latest.data != answer.data:
                yield latest
            answer = latest
        if events and answer.data.get("status") not in ENDED:  # the stream broke off, or the server stops
            patience.sleep(FIRST_RETRY)
            latest = poll_once(client, job_id, patience)
            if latest.data != answer.data:
                yield latest
            answer = latest
    yield from poll(client, job_id, patience, answer)


def _events(client: Client, job_id: str) -> Iterator[Answer]:
    """Yield the job at each of its events, until the stream ends."""
    for kind, text in client.events(path("jobs", job_id, "events")):
        if kind == "service.stopping":
            click.echo(STOPPING, err=True)
        elif kind == "snapshot" or kind.startswith("job."):
            try:
                job = json.loads(text)["jobs"][0] if kind == "snapshot" else json.loads(text)
            except (ValueError, LookupError, TypeError):
                return  # the stream of something else
            if not isinstance(job, dict):
                return
            yield Answer(json.dumps(job, ensure_ascii=False, separators=(",", ":")), job)


def wait_for(client: Client, job_id: str, display: Display, patience: RetryWindow) -> None:
    """Show the job until it has ended. Raises CliError unless it completed."""
    job = None
    try:
        with display:
            for job in follow(client, job_id, patience):
                display.show(job)
    except KeyboardInterrupt:
        words = f"Stopped waiting; the job continues.\n  lvp job watch {job_id}    to wait again\n"
        click.echo(f"\n{words}  lvp job cancel {job_id}   to cancel it", err=True)
        raise SystemExit(ExitStatus.INTERRUPTED) from None
    assert job is not None
    status = job.data.get("status")
    for warning in job.data.get("warnings", ()):
        click.echo(printable(f"Warning: {warning}"), err=True)
    if status == "failed":
        why = with_reason(job.data.get("error", "no reason given"), job.data.get("error_reason"))
        raise CliError(f"job {job_id} failed: {printable(why)}", ExitStatus.FAILED)
    if status == "cancelled":
        raise CliError(f"job {job_id} was cancelled and rolled back", ExitStatus.CANCELLED)
