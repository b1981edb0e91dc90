"""Response bodies as ``api.yaml`` defines them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from provisioner.contracts import GIB, Owner, Signer
from provisioner.contracts.redaction import is_version_id, redact
from provisioner.jobs import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from provisioner.auth.authenticator import Principal
    from provisioner.cache import Entry, Upload
    from provisioner.config import NamedImage
    from provisioner.contracts import Replaced, Volume
    from provisioner.contracts.errors import ProvisionerError
    from provisioner.images import ResolvedImage
    from provisioner.jobs import Job
    from provisioner.jobs.job import ReplacedInfo
    from provisioner.pipeline.dry_run import Plan
    from provisioner.pipeline.progress import Snapshot

# Fields of a request that a job shows beside it.
_ELSEWHERE = {"image_url", "correlation_id"}


def timestamp(seconds: float) -> str:
    """Return the time as RFC 3339 in UTC, in whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def uptime(seconds: float) -> str:
    """Return the duration as ``2h30m45s``, without leading zero parts."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _without_query(url: str) -> str:
    """Return the URL without its query, which may hold a signature that grants access to the image."""
    base, _, query = url.partition("?")
    return url if is_version_id(query) else base


def job_body(job: Job, snapshot: Snapshot | None, reader: str) -> dict[str, Any]:
    """Return a job as ``reader`` may see it, without the fields that do not apply."""
    spec = job.spec
    optional = {
        "volume_name": spec.volume_name,
        "progress": _progress(job, snapshot),
        "correlation_id": spec.correlation_id,
        "cache_hit": job.cache_hit if snapshot is None or snapshot.cache_hit is None else snapshot.cache_hit,
        "image_path": job.image_path,
        "error": job.error,
        "error_reason": job.error_reason,
        "warnings": job.warnings,
        "pinned_url": _without_query(job.pinned_url) if job.pinned_url else None,
        "volume": job.volume,
        "seed": job.seed,
        "replaced": None if job.replaced is None else replaced_body(job.replaced),
        "timings": job.timings,
        "submitted_by": job.principal,
        "signed_by": None if job.signed_by is None else signer_body(job.signed_by),
        "waiting_for": snapshot.waiting_for if snapshot else None,
    }
    image_url = spec.image_url.text if job.principal == reader else _without_query(spec.image_url.text)
    return {
        "job_id": job.job_id,
        "status": job.status,
        "created_at": timestamp(job.created_at),
        "updated_at": timestamp(max(job.updated_at, snapshot.changed_at if snapshot else 0.0)),
        "image_url": image_url,
        "attempts": job.attempts,
        "request": {
            "image_url": image_url,
            **{key: value for key, value in asked(job).items() if key not in _ELSEWHERE},
            **({"cloud_init": True} if spec.cloud_init else {}),
        },
        **{name: value for name, value in optional.items() if value is not None},
    }


def asked(job: Job) -> dict[str, str | int]:
    """Return what the client asked for, except the url. A job without a stored request: what was made of it."""
    if job.request is not None:
        return job.request
    spec = job.spec
    fields = {
        "volume_name": spec.volume_name,
        "volume_size_gb": spec.size_bytes // GIB or None,
        "correlation_id": spec.correlation_id,
        "image_type": spec.image_format,
        "target": spec.target,
        "checksum": str(spec.checksum) if spec.checksum else None,
        "priority": spec.priority,
    }
    return {name: value for name, value in fields.items() if value is not None}


def signer_body(signer: Signer) -> dict[str, str]:
    """Return who signed an image."""
    body = {"kind": signer.kind, "key": signer.key}
    return {**body, "name": signer.name} if signer.name else body


def replaced_body(replaced: Replaced | ReplacedInfo) -> dict[str, Any]:
    """Return the volume that a job or a restore replaced; without ``kept_as`` it was removed."""
    body: dict[str, Any] = {"name": replaced.volume, "ours": replaced.owner is Owner.OURS}
    if replaced.kept_as is None or replaced.kept_until is None:
        return body
    return {**body, "kept_as": replaced.kept_as, "kept_until": timestamp(replaced.kept_until)}


def _progress(job: Job, snapshot: Snapshot | None) -> dict[str, Any] | None:
    if job.status is Status.COMPLETED:
        total = job.bytes_total or (job.volume.size_bytes if job.volume else 0)
        done = {"bytes_processed": total, "bytes_total": total} if total else {}
        return {"stage": "finalizing", "percent": 100, **done, "eta_sec": 0}
    if snapshot is None:
        return None
    body: dict[str, Any] = {"stage": snapshot.stage, "percent": snapshot.percent}
    if snapshot.bytes_total:
        body |= {"bytes_processed": snapshot.bytes_processed, "bytes_total": snapshot.bytes_total}
    if snapshot.eta_sec is not None:
        body["eta_sec"] = round(snapshot.eta_sec)
    return body


def plan_body(plan: Plan, refusals: Iterable[ProvisionerError]) -> dict[str, Any]:
    """Return what a job would do, with every reason why it would be refused or fail."""
    reasons = [
        {
            "error": error.category if error.code < 500 else "job would fail",
            "reason": error.reason,
            "message": redact(error.message),
        }
        for error in refusals
    ]
    body = msgspec.to_builtins(plan)
    if plan.signed_by is not None:
        body["signed_by"] = signer_body(plan.signed_by)
    return {**body, "refusals": reasons}


def principal_body(principal: Principal) -> dict[str, Any]:
    """Return who the caller is and what it may do; absent limits do not exist."""
    body = {
        "principal": principal.id,
        "name": principal.name,
        "role": principal.role,
        "via": principal.via,
        "limits": msgspec.to_builtins(principal.limits),
    }
    return body if principal.expires_at is None else {**body, "expires_at": timestamp(principal.expires_at)}


def named_image_body(name: str, image: NamedImage) -> dict[str, Any]:
    """Return a named image as the configuration describes it."""
    return {"name": name, "image_type": image.image_type, "description": image.description}


def resolved_image_body(image: ResolvedImage) -> dict[str, Any]:
    """Return what the name of an image stands for now."""
    body = {"image_url": image.url.without_query, "version": image.version}
    checksum = str(image.checksum) if image.checksum else None
    return {key: value for key, value in (body | {"checksum": checksum}).items() if value is not None}


def image_changed_body(status: str, entry: Entry) -> dict[str, Any]:
    """Return what became of a cached image."""
    return {"status": status, **_digest(entry.digest)}


def _digest(digest: str) -> dict[str, Any]:
    """Return a digest in both forms: the digits alone, and with the algorithm in front."""
    return {"checksum": digest.partition(":")[2], "digest": digest}


def image_body(entry: Entry, path: str, *, prewarmed: bool = False) -> dict[str, Any]:
    """Return a cached image as clients see it; one that is ``prewarmed`` is pinned by the configuration."""
    optional = {
        "virtual_size": entry.virtual_size,
        "compression": entry.compression,
        "signed_by": None if entry.signed_by is None else signer_body(entry.signed_by),
    }
    return {
        "path": path,
        "size": entry.size,
        **_digest(entry.digest),
        "url": _without_query(entry.url),
        "format": entry.format,
        "last_used_at": timestamp(entry.last_used_at),
        "pinned": entry.pinned or prewarmed,
        **{name: value for name, value in optional.items() if value is not None},
    }


def upload_body(status: str, upload: Upload, offset: int) -> dict[str, Any]:
    """Return how many bytes of an image are here, and by which url jobs will use it."""
    return {"status": status, "offset": offset, "image_url": upload.url.text, **_digest(upload.digest)}


def volume_resized_body(volume: Volume, *, grown: bool) -> dict[str, Any]:
    """Return a volume after a request to resize it."""
    return {
        "status": "resized" if grown else "unchanged",
        "target": volume.target,
        "name": volume.name,
        "path": volume.path,
        "size_bytes": volume.size_bytes,
    }


def seeds_of(volumes: Iterable[Volume]) -> dict[tuple[str, str], str]:
    """Return the names of the cloud-init seeds among ``volumes``, by the target and name of their volumes."""
    origins = ((volume, volume.provenance) for volume in volumes)
    return {(one.target, origin.seed_of): one.name for one, origin in origins if origin and origin.seed_of}


def volume_body(volume: Volume, seeds: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Return a provisioned volume as clients see it. ``seeds``: see ``seeds_of``."""
    origin = volume.provenance
    assert origin is not None, "only volumes this service made are listed"
    body: dict[str, Any] = {
        "name": volume.name,
        "target": volume.target,
        "path": volume.path,
        "size_bytes": volume.size_bytes,
        "image_url": origin.image_url,
        "job_id": origin.job_id,
        "created_at": timestamp(origin.created_at),
    }
    if origin.seed_of is not None:
        return {**body, "seed_of": origin.seed_of}
    if (volume.target, volume.name) in seeds:
        body["seed"] = seeds[volume.target, volume.name]
    if origin.image_digest is not None:
        body |= _digest(origin.image_digest)
    signer = Signer.of_tag(origin.signed_by)
    return body if signer is None else {**body, "signed_by": signer_body(signer)}
