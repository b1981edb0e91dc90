"""What clients send and get, as ``api.yaml`` states it. Owns reading and wording; decides nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from provisioner.contracts.errors import InvalidRequestError
from provisioner.jobs import JobFilter, JobSpec, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.cache import Entry
    from provisioner.contracts import Volume
    from provisioner.jobs import Job
    from provisioner.pipeline.progress import Snapshot

S = TypeVar("S", bound=msgspec.Struct)

Url = Annotated[str, Meta(min_length=1, max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Format = Annotated[str, Meta(min_length=1, max_length=64)]
Digest = Annotated[str, Meta(pattern=r"^(sha256:[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128})$")]


class JobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /jobs."""

    image_url: Url
    volume_name: Name
    # An int64 of GiB in bytes is the most a device can have.
    volume_size_gb: Annotated[int, Meta(ge=1, le=2**33 - 1)]
    image_type: Format = "qcow2"
    correlation_id: Name | msgspec.UnsetType = msgspec.UNSET
    target: Name | msgspec.UnsetType = msgspec.UNSET
    checksum: Digest | msgspec.UnsetType = msgspec.UNSET
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0

    def spec(self) -> JobSpec:
        """What is asked of the supervisor."""
        return JobSpec(
            image_url=self.image_url,
            image_type=self.image_type,
            volume_name=self.volume_name,
            volume_size_gb=self.volume_size_gb,
            target=self.target or None,
            checksum=self.checksum or None,
            correlation_id=self.correlation_id or None,
            priority=self.priority,
        )


class FetchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /cache/fetch."""

    image_url: Url
    image_type: Format = "qcow2"
    checksum: Digest | msgspec.UnsetType = msgspec.UNSET

    def spec(self) -> JobSpec:
        """What is asked of the supervisor."""
        return JobSpec(image_url=self.image_url, image_type=self.image_type, checksum=self.checksum or None)


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a list."""

    offset: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class JobPage(Page, frozen=True, kw_only=True):
    """Query of GET /jobs."""

    # Not None: in a query "null" would be read as that, and a volume may be called so.
    status: Status | msgspec.UnsetType = msgspec.UNSET
    volume_name: Name | msgspec.UnsetType = msgspec.UNSET
    correlation_id: Name | msgspec.UnsetType = msgspec.UNSET

    def wanted(self) -> JobFilter:
        """Which jobs are asked for."""
        return JobFilter(
            status=self.status or None,
            volume_name=self.volume_name or None,
            correlation_id=self.correlation_id or None,
        )


def read_body(body: bytes, kind: type[S]) -> S:
    """A JSON body as ``kind``. Raises InvalidRequestError saying which field is wrong and what it may be."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(_wording(str(error), kind)) from error


def read_query(query: Mapping[str, str], kind: type[S]) -> S:
    """Query parameters as ``kind``; parameters it does not have are passed over. Raises InvalidRequestError."""
    known = {name: query[name] for name in kind.__struct_fields__ if name in query}
    try:
        return msgspec.convert(known, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(_wording(str(error), kind)) from error


def _wording(message: str, kind: type[msgspec.Struct]) -> str:
    """Msgspec's words turned so that the field comes first."""
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", message):
        return f"{missing[1]} is required"
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        return f"unknown field {unknown[1]!r}; there are: {', '.join(kind.__struct_fields__)}"
    if placed := re.fullmatch(r"(.*) - at `\$\.(\w+)`", message, re.DOTALL):
        return f"{placed[2]}: {placed[1][0].lower()}{placed[1][1:]}".replace("`", "")
    return f"the body is not valid: {message}".replace("`", "")


def timestamp(seconds: float) -> str:
    """RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def uptime(seconds: float) -> str:
    """As ``2h30m45s``; leading parts that are zero are left out."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _without_query(url: str) -> str:
    """The url as others may see it: a signature in its query opens the image to whoever reads it."""
    return url.partition("?")[0]


def job_body(job: Job, snapshot: Snapshot | None, reader: str) -> dict[str, Any]:
    """A job as the caller ``reader`` sees it; fields that do not apply are absent."""
    spec = job.spec
    optional = {
        "volume_name": spec.volume_name,
        "progress": _progress(job, snapshot),
        "correlation_id": spec.correlation_id,
        "cache_hit": job.cache_hit if snapshot is None or snapshot.cache_hit is None else snapshot.cache_hit,
        "image_path": job.image_path,
        "error": job.error,
        "volume": job.volume,
        "timings": job.timings,
    }
    return {
        "job_id": job.job_id,
        "status": job.status,
        "created_at": timestamp(job.created_at),
        "updated_at": timestamp(job.updated_at),
        "image_url": spec.image_url if job.principal == reader else _without_query(spec.image_url),
        **{name: value for name, value in optional.items() if value is not None},
    }


def _progress(job: Job, snapshot: Snapshot | None) -> dict[str, Any] | None:
    if job.status is Status.COMPLETED:
        return {"stage": "finalizing", "percent": 100, "eta_sec": 0}
    if snapshot is None:
        return None
    body: dict[str, Any] = {"stage": snapshot.stage, "percent": snapshot.percent}
    if snapshot.bytes_total:
        body |= {"bytes_processed": snapshot.bytes_processed, "bytes_total": snapshot.bytes_total}
    if snapshot.eta_sec is not None:
        body["eta_sec"] = round(snapshot.eta_sec)
    return body


def image_body(entry: Entry, path: str) -> dict[str, Any]:
    """A cached image as clients see it."""
    optional = {"virtual_size": entry.virtual_size, "compression": entry.compression}
    return {
        "path": path,
        "size": entry.size,
        "checksum": entry.digest,
        "url": _without_query(entry.url),
        "format": entry.format,
        "last_used_at": timestamp(entry.last_used_at),
        "pinned": entry.pinned,
        **{name: value for name, value in optional.items() if value is not None},
    }


def volume_body(volume: Volume) -> dict[str, Any]:
    """A provisioned volume as clients see it."""
    origin = volume.provenance
    assert origin is not None, "only volumes this service made are listed"
    body = {
        "name": volume.name,
        "target": volume.target,
        "path": volume.path,
        "size_bytes": volume.size_bytes,
        "image_url": origin.image_url,
        "job_id": origin.job_id,
        "created_at": timestamp(origin.created_at),
    }
    return body if origin.image_digest is None else {**body, "checksum": origin.image_digest}
