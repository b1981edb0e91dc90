"""``lvp job``: submit, list, show, watch and cancel jobs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.cloud_init import cloud_init_field, cloud_init_options
from provisioner.cli.completion import (
    complete_active_job,
    complete_ended_job,
    complete_job,
    complete_target,
    complete_volume,
)
from provisioner.cli.connection import connect, connection_options, json_option, path
from provisioner.cli.formatting import printable, size, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.prefixes import JobId, whole_job_id

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from provisioner.cli.client import Client

STATUSES = ["pending", "running", "completed", "failed", "cancelled"]
# Seconds; a restart that rolls jobs back takes up to two minutes on a slow disk.
DEFAULT_PATIENCE = 120.0

patience_option = click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=DEFAULT_PATIENCE,
    show_default=True,
    metavar="SECONDS",
    help="How long to retry if the server stops answering while waiting, such as during a restart.",
)


class Gibibytes(click.ParamType[int]):
    """A positive whole number."""

    name = "integer"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        del param
        text = str(value)
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) > 0):
            raise click.UsageError(f"SIZE_GB is a whole number of GiB, such as 20; found {text!r}", ctx)
        return int(text)


@click.group(cls=SuggestingGroup)
def job() -> None:
    """Create volumes from images."""


@job.command(
    cls=SectionedCommand,
    examples=[
        "lvp job submit https://images.example.org/debian-12.qcow2 web-01 20 --wait",
        "lvp job submit debian-12 web-01 20             # a named image: lvp image list",
        "lvp job submit --type raw --target fast s3://images/db.raw db-01 100",
        "lvp job submit debian-12 web-01 --user-data user-data.yaml --wait",
        "lvp job submit --type vmdk https://images.example.org/appliance.ova app-01 --wait",
    ],
)
@click.argument("image")
@click.argument("name")
@click.argument("size_gb", type=Gibibytes(), required=False)
@click.option("--type", "image_type", metavar="TYPE", help="Format of the disk image, such as raw.  [default: qcow2]")
@click.option(
    "--target",
    metavar="NAME",
    shell_complete=complete_target,
    help="Block target for the volume.  [default: the server's]",
)
@click.option("--checksum", metavar="sha256:HEX", help="Expected digest; overrides checksum files beside the image.")
@click.option("--correlation-id", metavar="ID", help="Your own id, shown in the job and the logs.")
@click.option("--priority", type=int, metavar="N", help="Queued jobs with a higher priority run first.  [default: 0]")
@click.option("--idempotency-key", metavar="KEY", help="Repeating the request with the same key returns the same job.")
@cloud_init_options
@click.option("--dry-run", is_flag=True, help="Only show what the job would do, and why it would be refused.")
@click.option("--wait", is_flag=True, help="Show progress and wait until the job ends.")
@patience_option
@json_option
@connection_options
def submit(
    image: str,
    name: str,
    size_gb: int | None,
    idempotency_key: str | None,
    dry_run: bool,
    wait: bool,
    patience: float,
    as_json: bool,
    image_type: str | None,
    target: str | None,
    checksum: str | None,
    correlation_id: str | None,
    priority: int | None,
    user_data: Path | None,
    meta_data: Path | None,
    network_config: Path | None,
    **connection: str | None,
) -> None:
    """Create the volume NAME of SIZE_GB GiB from IMAGE, a URL or the name of an image.

    Without SIZE_GB, the volume is the smallest of whole GiB that fits the image.

    With --user-data, the volume NAME-seed is created beside it: a NoCloud image that the guest's
    cloud-init reads, to be attached as a CD-ROM.

    Prints the job's id. With --wait it shows the progress too, and the exit status is 0 only
    if the volume is complete, 1 if the job failed, and 3 if it was cancelled.
    Ctrl-C ends the waiting, not the job.
    """
    wanted: dict[str, object] = {
        **image_field(image),
        "volume_name": name,
        "volume_size_gb": size_gb,
        "image_type": image_type,
        "target": target,
        "checksum": checksum,
        "correlation_id": correlation_id,
        "priority": priority,
        "cloud_init": cloud_init_field(
            {"user_data": user_data, "meta_data": meta_data, "network_config": network_config}
        ),
    }
    client = connect(connection)
    if dry_run:
        from provisioner.cli.plan import show_plan

        show_plan(client, wanted, as_json=as_json)
        return
    start(client, path("jobs"), wanted, idempotency_key, wait=wait, patience=patience, as_json=as_json)


def image_field(image: str) -> dict[str, object]:
    """Return the field of a request for what the user typed: the name of an image, or a url. No name has a slash."""
    return {"image_url" if "/" in image else "image": image}


def start(
    client: Client,
    where: str,
    wanted: Mapping[str, object],
    idempotency_key: str | None,
    *,
    wait: bool,
    patience: float,
    as_json: bool,
) -> None:
    """Submit a job, then print its id or wait for it. The server chooses values that are None."""
    import uuid

    body = {key: value for key, value in wanted.items() if value is not None}
    answer = client.submit(where, body, idempotency_key or str(uuid.uuid4()))
    job_id = str(answer.data["job_id"])
    if as_json and not wait:
        click.echo(answer.text)
    elif as_json:
        pass  # only job objects go to standard output
    elif wait:
        click.echo(f"job {printable(job_id)}")
    else:
        click.echo(printable(job_id))
        if sys.stdout.isatty():
            click.echo(f"Accepted. To see the progress: lvp job watch {printable(job_id)}", err=True)
    if wait:
        poll_to_end(client, job_id, patience, as_json=as_json)


def poll_to_end(client: Client, job_id: str, patience: float, *, as_json: bool) -> None:
    """Show a job until it ends. Raises CliError unless it completed."""
    from provisioner.cli.following import wait_for
    from provisioner.cli.polling import RetryWindow
    from provisioner.cli.progress import display

    sys.stdout.flush()
    wait_for(client, job_id, display(as_json=as_json), RetryWindow(patience))


@job.command("list", cls=SectionedCommand, examples=["lvp job list --status failed --limit 10"])
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs with this status.")
@click.option(
    "--volume", "volume_name", metavar="NAME", shell_complete=complete_volume, help="Only jobs for this volume."
)
@click.option("--correlation-id", metavar="ID", help="Only jobs submitted with this id.")
@click.option("--offset", type=click.IntRange(min=0), metavar="N", help="Skip the newest N.")
@click.option("--limit", type=click.IntRange(1, 1000), metavar="N", help="Show at most N.  [default: 100]")
@json_option
@connection_options
def list_jobs(
    status: str | None,
    volume_name: str | None,
    correlation_id: str | None,
    offset: int | None,
    limit: int | None,
    as_json: bool,
    **connection: str | None,
) -> None:
    """List jobs, newest first."""
    filters = {
        "status": status,
        "volume_name": volume_name,
        "correlation_id": correlation_id,
        "offset": offset,
        "limit": limit,
    }
    client = connect(connection)
    answer = client.get(path("jobs"), {key: value for key, value in filters.items() if value is not None})
    if as_json:
        click.echo(answer.text)
        return
    rows = [_row(entry) for entry in answer.data["jobs"]]
    click.echo(table(["JOB", "STATUS", "PROGRESS", "VOLUME", "CREATED", "IMAGE"], rows))
    print_if_more(answer.data, len(rows))


def _row(entry: Mapping[str, Any]) -> list[object]:
    from provisioner.cli.progress import headline

    progress = entry.get("progress") or {}
    running = headline(progress) if entry["status"] == "running" and progress else ""
    volume = entry.get("volume_name") or (entry.get("volume") or {}).get("name")
    return [entry["job_id"], entry["status"], running, volume, entry["created_at"], entry.get("image_url")]


def print_if_more(page: Mapping[str, Any], shown: int) -> None:
    """Print to standard error that the list has more entries."""
    stop = page.get("offset", 0) + shown
    if page.get("count", 0) > stop:
        click.echo(f"{shown} of {page['count']}; more with --offset {stop}", err=True)


@job.command(
    cls=SectionedCommand, examples=["lvp job show f47ac10b-58cc-4372-a567-0e02b2c3d479", "lvp job show f47ac10b"]
)
@click.argument("job_id", metavar="ID", type=JobId(), shell_complete=complete_job)
@json_option
@connection_options
def show(job_id: str, as_json: bool, **connection: str | None) -> None:
    """Show the job ID: status, progress, volume, times, and why it failed.

    The first 8 characters of an id are enough if they are unique, here and in the other commands.
    """
    client = connect(connection)
    answer = client.get(path("jobs", whole_job_id(client, job_id)))
    click.echo(answer.text if as_json else "\n".join(_lines(answer.data)))


def _lines(entry: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in entry.items():
        if isinstance(value, dict):
            lines += [f"{indent}{printable(key)}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines += [f"{indent}{printable(key)}:", *(f"{indent}  {printable(one)}" for one in value)]
        elif key in {"size_bytes", "bytes_processed", "bytes_total"}:
            lines.append(f"{indent}{key}: {value} ({size(value)})")
        else:
            lines.append(f"{indent}{printable(key)}: {printable(value)}")
    return lines


@job.command(cls=SectionedCommand, examples=["lvp job watch f47ac10b-58cc-4372-a567-0e02b2c3d479"])
@click.argument("job_id", metavar="ID", type=JobId(), shell_complete=complete_active_job)
@patience_option
@json_option
@connection_options
def watch(job_id: str, patience: float, as_json: bool, **connection: str | None) -> None:
    """Show the progress of the job ID until it ends.

    Shows a bar on a terminal and lines in a pipe; with --json, the job at each change, one object on each line.
    The exit status is 0 only if the job completed, 1 if it failed, and 3 if it was cancelled. Ctrl-C ends the
    watching, not the job.
    """
    client = connect(connection)
    poll_to_end(client, whole_job_id(client, job_id), patience, as_json=as_json)


@job.command(cls=SectionedCommand, examples=["lvp job cancel f47ac10b-58cc-4372-a567-0e02b2c3d479"])
@click.argument("job_id", metavar="ID", type=JobId(), shell_complete=complete_active_job)
@json_option
@connection_options
def cancel(job_id: str, as_json: bool, **connection: str | None) -> None:
    """Cancel the job ID and roll it back. Returns when that is done."""
    client = connect(connection)
    from provisioner.cli.client import CANCEL_TIMEOUT

    job_id = whole_job_id(client, job_id)
    answer = client.post(path("jobs", job_id, "cancel"), limit=CANCEL_TIMEOUT)
    click.echo(answer.text if as_json else f"job {job_id} is cancelled and rolled back")


@job.command(cls=SectionedCommand, examples=["lvp job retry f47ac10b-58cc-4372-a567-0e02b2c3d479 --wait"])
@click.argument("job_id", metavar="ID", type=JobId(), shell_complete=complete_ended_job)
@click.option("--idempotency-key", metavar="KEY", help="Repeating the request with the same key returns the same job.")
@click.option("--wait", is_flag=True, help="Show progress and wait until the job ends.")
@patience_option
@json_option
@connection_options
def retry(
    job_id: str, idempotency_key: str | None, wait: bool, patience: float, as_json: bool, **connection: str | None
) -> None:
    """Submit the request of the job ID again, as a new job. The job must have ended.

    Prints the new job's id. With --wait it works as in lvp job submit.
    """
    client = connect(connection)
    where = path("jobs", whole_job_id(client, job_id), "retry")
    start(client, where, {}, idempotency_key, wait=wait, patience=patience, as_json=as_json)
