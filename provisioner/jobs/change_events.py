"""Changes as observers receive them: plain values without secrets."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from provisioner.cache import Entry
from provisioner.contracts import ChangeEvent
from provisioner.contracts.redaction import redact
from provisioner.jobs.feed import VolumeChange
from provisioner.jobs.history import JobFilter
from provisioner.jobs.job import Job

if TYPE_CHECKING:
    from provisioner.jobs.store import JobStore

# The newest jobs whose ends an observer gets to compare at the start. Far more than can be active at once by default.
_COMPARED = 1000


def change_event(kind: str, subject: object) -> ChangeEvent | None:
    """Return the change of ``subject`` for observers; None if it does not concern them."""
    now = time.time()
    if isinstance(subject, Job):
        return ChangeEvent(f"{subject.job_id}-{subject.status}-{subject.attempts}", kind, now, _job(subject))
    if isinstance(subject, VolumeChange):
        return ChangeEvent(str(uuid.uuid4()), kind, now, msgspec.to_builtins(subject))
    if isinstance(subject, Entry):
        return ChangeEvent(str(uuid.uuid4()), kind, now, _image(subject))
    return None


async def newest_ends(store: JobStore) -> list[ChangeEvent]:
    """Return the ends of the newest jobs, the oldest first. Raises UnavailableError."""
    jobs, _ = await store.page(JobFilter(), 0, _COMPARED)
    return [
        ChangeEvent(f"{job.job_id}-{job.status}-{job.attempts}", f"job.{job.status}", job.updated_at, _job(job))
        for job in reversed(jobs)
        if job.status.ended
    ]


def _job(job: Job) -> dict[str, Any]:
    spec = job.spec
    optional = {
        "volume_name": spec.volume_name,
        "target": spec.target,
        "correlation_id": spec.correlation_id,
        "submitted_by": job.principal,
        "cache_hit": job.cache_hit,
        "volume": None if job.volume is None else msgspec.to_builtins(job.volume),
        "error": None if job.error is None else redact(job.error),
    }
    return {
        "job_id": job.job_id,
        "status": job.status.value,
        "created_at": _timestamp(job.created_at),
        "updated_at": _timestamp(job.updated_at),
        "attempts": job.attempts,
        "image_url": spec.image_url.without_query,
        "image_type": spec.image_format,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _image(entry: Entry) -> dict[str, Any]:
    return {
        "digest": entry.digest,
        "size": entry.size,
        "format": entry.format,
        "url": redact(entry.url),
        "pinned": entry.pinned,
    }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
