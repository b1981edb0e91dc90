"""``lvp job submit --dry-run``: show what a job would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.connection import path
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.formatting import printable, size, span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.cli.client import Client


def show_plan(client: Client, wanted: Mapping[str, object], *, as_json: bool) -> None:
    """Print what a job would do. Raises CliError if it would be refused or fail."""
    import uuid

    body = {key: value for key, value in wanted.items() if value is not None}
    answer = client.submit(path("jobs") + "?dry_run=true", body, str(uuid.uuid4()))
    if "refusals" not in answer.data:
        job_id = printable(answer.data.get("job_id"))
        raise CliError(f"the server is older and has no dry run; it has accepted the job {job_id}", ExitStatus.REFUSED)
    refusals = [printable(refusal["message"]) for refusal in answer.data["refusals"]]
    click.echo(answer.text if as_json else "\n".join(_sentences(answer.data)))
    if refusals:
        raise CliError("the job would be refused or fail: " + "; ".join(refusals), ExitStatus.REFUSED)


def _sentences(plan: Mapping[str, Any]) -> list[str]:
    lines = [("image", plan["image_url"]), ("source", plan.get("source")), ("checksum", _checksum(plan))]
    if "signed_by" in plan:
        signer = plan["signed_by"]
        name = f" ({signer['name']})" if "name" in signer else ""
        lines.append(("signer", f"{signer['kind']} key {signer['key']}{name}"))
    if plan.get("cache_hit"):
        lines.append(("download", "nothing: the image is there already"))
    elif "download_bytes" in plan:
        lines.append(("download", size(plan["download_bytes"])))
    lines.append(("target", plan.get("target")))
    if "provisioned_by" in plan:
        reason = f" ({plan['copy_reason']})" if "copy_reason" in plan else ""
        how = f"by {plan['provisioned_by']}{reason}"
        lines.append(("volume", f"{plan['volume_name']}, {size(plan['volume_size_bytes'])}, {how}"))
    elif "volume_name" in plan and "volume_size_bytes" not in plan:
        lines.append(("volume", f"{plan['volume_name']}, as large as the image needs"))
    if "seed_name" in plan:
        lines.append(("seed", plan["seed_name"]))
    if "replaces" in plan:
        old = plan["replaces"]
        whose = "made by this service" if old["ours"] else "NOT made by this service"
        how = f", {plan['placement']}" if "placement" in plan else ""
        lines.append(("replaces", f"{old['path']}, {size(old['size_bytes'])}, {whose}{how}{_kept(old)}"))
    if "space_needed_bytes" in plan:
        lines.append(("space", f"{size(plan['space_needed_bytes'])} of {size(plan['space_free_bytes'])} free"))
    return [f"{name + ':':<10}{printable(value)}" for name, value in lines if value is not None]


def _kept(old: Mapping[str, Any]) -> str:
    """Return what becomes of the replaced volume, if the server says so."""
    seconds = old.get("keep_seconds")
    if seconds is None:
        return ""
    kept_for = f"{seconds // 86400} days" if seconds >= 2 * 86400 else span(seconds)
    return f", kept for {kept_for}" if seconds else ", NOT kept"


def _checksum(plan: Mapping[str, Any]) -> str | None:
    origin = {"request": "from the request", "server": "from the server"}.get(plan.get("checksum_from", ""))
    return f"{plan['checksum']} ({origin})" if origin else None
