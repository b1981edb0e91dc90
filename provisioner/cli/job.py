"""``lvp job``: submit, list, show, watch and cancel jobs."""

from __future__ import annotations

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
from provisioner.cli.connection import connect, connection_options, fleet_options, json_option, names_hosts, path
from provisioner.cli.formatting import printable, size, table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.id_prefixes import JobId, whole_job_id
from provisioner.cli.starting import (
    BATCH_FILE,
    Gibibytes,
    Start,
    image_field,
    patience_option,
    poll_to_end,
    print_if_more,
    selection_options,
    start,
    start_on,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STATUSES = ["pending", "running", "completed", "failed", "cancelled"]


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
        "lvp job submit debian-12 web-01 20 --hosts 'kvm-[01-20]' --wait",
        "lvp job submit --batch volumes.toml --dry-run",
    ],
)
@click.argument("image", required=False)
@click.argument("name", required=False)
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
@click.option(
    "--batch",
    type=BATCH_FILE,
    metavar="FILE",
    help="Submit the volumes of a file, TOML or JSON lines; - reads them from a pipe.",
)
@click.option("--dry-run", is_flag=True, help="Only show what the job would do, and why it would be refused.")
@click.option("--wait", is_flag=True, help="Show progress and wait until the job ends.")
@patience_option
@json_option
@fleet_options
@connection_options
def submit(
    image: str | None,
    name: str | None,
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
    batch: Path | None,
    **connection: Any,
) -> None:
    """Create the volume NAME of SIZE_GB GiB from IMAGE, a URL or the name of an image.

    Without SIZE_GB, the volume is the smallest of whole GiB that fits the image.

    With --user-data, the volume NAME-seed is created beside it: a NoCloud image that the guest's
    cloud-init reads, to be attached as a CD-ROM.

    Prints the job's id. With --wait it shows the progress too, and the exit status is 0 only
    if the volume is complete, 1 if the job failed, and 3 if it was cancelled.
    Ctrl-C ends the waiting, not the job.

    With --hosts the same on each host; {host} in NAME is the host's name. With --batch the volumes
    of the file; a second run leaves those alone that are complete or under way.
    """
    fields = {
        "--type": image_type, "--target": target, "--checksum": checksum, "--correlation-id": correlation_id,
        "--priority": priority, "--user-data": user_data, "--meta-data": meta_data, "--network-config": network_config,
    }  # fmt: skip
    how = Start(idempotency_key, wait=wait, patience=patience, as_json=as_json)
    if batch is not None:
        _refuse_with_batch(image, [name for name, value in fields.items() if value is not None])
        from provisioner.cli.fleet.jobs import submit_batch

        submit_batch(batch, connection, how, dry_run=dry_run)
        return
    image, name = _given(image, "IMAGE"), _given(name, "NAME")
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
    start(connection, path("jobs"), wanted, how, dry_run=dry_run)


def _given(value: str | None, name: str) -> str:
    """Return an argument that only ``--batch`` makes unnecessary. Raises click.MissingParameter."""
    if value is None:
        raise click.MissingParameter(ctx=click.get_current_context(), param_type="argument", param_hint=f"'{name}'")
    return value


def _refuse_with_batch(image: str | None, options: Sequence[str]) -> None:
    """Raise click.UsageError if the command line says what the batch's entries say."""
    if image is not None:
        raise click.UsageError("give either IMAGE and NAME or --batch, not both")
    if options:
        raise click.UsageError(f"with --batch, write {options[0].removeprefix('--').replace('-', '_')} into the file")


@job.command("list", cls=SectionedCommand, examples=["lvp job list --status failed --limit 10"])
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs with this status.")
@click.option(
    "--volume", "volume_name", metavar="NAME", shell_complete=complete_volume, help="Only jobs for this volume."
)
@click.option("--correlation-id", metavar="ID", help="Only jobs submitted with this id.")
@click.option("--offset", type=click.IntRange(min=0), metavar="N", help="Skip the newest N.")
@click.option("--limit", type=click.IntRange(1, 1000), metavar="N", help="Show at most N.  [default: 100]")
@json_option
@fleet_options
@connection_options
def list_jobs(
    status: str | None,
    volume_name: str | None,
    correlation_id: str | None,
    offset: int | None,
    limit: int | None,
    as_json: bool,
    **connection: Any,
) -> None:
    """List jobs, newest first. With --hosts those of each host, with the host in the first column."""
    filters = {
        "status": status,
        "volume_name": volume_name,
        "correlation_id": correlation_id,
        "offset": offset,
        "limit": limit,
    }
    params = {key: value for key, value in filters.items() if value is not None}
    if names_hosts(connection):
        if offset is not None:
            raise click.UsageError("--offset is about the list of one host; use --limit")
        from provisioner.cli.fleet.overview import show_jobs

        show_jobs(connection, params, as_json=as_json)
        return
    answer = connect(connection).get(path("jobs"), params)
    if as_json:
        click.echo(answer.text)
        return
    rows = [job_row(entry) for entry in answer.data["jobs"]]
    click.echo(table(["JOB", "STATUS", "PROGRESS", "VOLUME", "CREATED", "IMAGE"], rows))
    print_if_more(answer.data, len(rows))


def job_row(entry: Mapping[str, Any]) -> list[object]:
    """Return the cells of a job in a list."""
    from provisioner.cli.progress import headline

    progress = entry.get("progress") or {}
    running = headline(progress) if entry["status"] == "running" and progress else ""
    volume = entry.get("volume_name") or (entry.get("volume") or {}).get("name")
    return [entry["job_id"], entry["status"], running, volume, entry["created_at"], entry.get("image_url")]


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


@job.command(
    cls=SectionedCommand,
    examples=["lvp job watch f47ac10b-58cc-4372-a567-0e02b2c3d479", "lvp job watch --hosts 'kvm-[01-20]'"],
)
@click.argument("job_id", metavar="[ID]", required=False, type=JobId(), shell_complete=complete_active_job)
@selection_options
@patience_option
@json_option
@fleet_options
@connection_options
def watch(
    job_id: str | None,
    volume_name: str | None,
    correlation_id: str | None,
    patience: float,
    as_json: bool,
    **connection: Any,
) -> None:
    """Show the progress of the job ID until it ends.

    Shows a bar on a terminal and lines in a pipe; with --json, the job at each change, one object on each line.
    The exit status is 0 only if the job completed, 1 if it failed, and 3 if it was cancelled. Ctrl-C ends the
    watching, not the job.

    With --hosts: one table of all jobs that are pending or running there now, or of those selected.
    """
    selected = {"job_id": job_id, "volume_name": volume_name, "correlation_id": correlation_id}
    if names_hosts(connection):
        from provisioner.cli.fleet.waiting import watch_jobs

        watch_jobs(connection, selected, patience, as_json=as_json)
        return
    job_id = _one_job(selected)
    client = connect(connection)
    poll_to_end(client, whole_job_id(client, job_id), patience, as_json=as_json)


@job.command(
    cls=SectionedCommand,
    examples=[
        "lvp job cancel f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "lvp job cancel --hosts 'kvm-[01-20]' --correlation-id deploy-4711",
    ],
)
@click.argument("job_id", metavar="[ID]", required=False, type=JobId(), shell_complete=complete_active_job)
@selection_options
@click.option("--all", "is_all", is_flag=True, help="With --hosts: all jobs that are pending or running there.")
@json_option
@fleet_options
@connection_options
def cancel(
    job_id: str | None,
    volume_name: str | None,
    correlation_id: str | None,
    is_all: bool,
    as_json: bool,
    **connection: Any,
) -> None:
    """Cancel the job ID and roll it back. Returns when that is done.

    With --hosts: the job ID wherever it is, those for a volume or with a correlation id, or with
    --all every pending or running job.
    """
    selected = {"job_id": job_id, "volume_name": volume_name, "correlation_id": correlation_id}
    if names_hosts(connection):
        if is_all == any(value is not None for value in selected.values()):
            raise click.UsageError("say which jobs: ID, --volume, --correlation-id, or --all")
        from provisioner.cli.fleet.overview import cancel_jobs

        cancel_jobs(connection, selected, as_json=as_json)
        return
    if is_all:
        raise click.UsageError("--all needs --hosts")
    job_id = _one_job(selected)
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
    start_on(client, where, {}, Start(idempotency_key, wait=wait, patience=patience, as_json=as_json))


def _one_job(selected: Mapping[str, str | None]) -> str:
    """Return the id of the one job that a command without ``--hosts`` is about. Raises click.UsageError."""
    if selected["volume_name"] is not None or selected["correlation_id"] is not None:
        raise click.UsageError("--volume and --correlation-id select among many hosts: they need --hosts")
    return _given(selected["job_id"], "ID")
