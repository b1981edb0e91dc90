"""A job as the store keeps it: JSON with the API's names and units. Owns that format; parses urls and checksums.

A change of these fields needs a migration in ``database``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import msgspec

from provisioner.config import SignatureSettings
from provisioner.contracts import GIB, AbsolutePath, Checksum, ImageUrl
from provisioner.contracts.errors import InvalidRequestError
from provisioner.jobs.job import Job
from provisioner.pipeline.job_run import JobSpec

if TYPE_CHECKING:
    from provisioner.pipeline.cloud_init import CloudInit

# A page of the history names a few images many times.
_parse_url = lru_cache(maxsize=256)(ImageUrl.parse)
_parse_checksum = lru_cache(maxsize=256)(Checksum.parse)
# Fields that earlier versions did not have. They are left out when empty.
_LATER = frozenset(
    {
        "bytes_total", "request", "replaced", "signed_by", "warnings", "pinned_url", "seed", "traceparent",
        "error_reason",
    }
)  # fmt: skip


class SignatureRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A demanded signature in the store."""

    kind: Literal["openpgp", "minisign", "cosign"]
    key_file: str
    files: list[str]

    @classmethod
    def of(cls, settings: SignatureSettings) -> SignatureRecord:
        """Return the record of ``settings``."""
        return cls(kind=settings.kind, key_file=str(settings.key_path), files=settings.files)

    def settings(self) -> SignatureSettings:
        """Return the settings. Raises ValueError."""
        path = AbsolutePath(self.key_file)
        if self.kind == "openpgp":
            return SignatureSettings(kind=self.kind, keyring=path, files=self.files)
        return SignatureSettings(kind=self.kind, public_key=path, files=self.files)


class SpecRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job's spec in the store. The order of the fields is that of the stored JSON."""

    image_url: str
    image_type: str = "qcow2"
    volume_name: str | None = None
    volume_size_gb: int | None = None
    target: str | None = None
    checksum: str | None = None
    correlation_id: str | None = None
    priority: int = 0
    allowed_sources: list[str] | None = None
    signature: SignatureRecord | None = None
    cloud_init: str | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> SpecRecord:
        """Return the record of ``spec``."""
        return cls(
            image_url=spec.image_url.text,
            image_type=spec.image_format,
            volume_name=spec.volume_name,
            volume_size_gb=spec.size_bytes // GIB or None,
            target=spec.target,
            checksum=str(spec.checksum) if spec.checksum else None,
            correlation_id=spec.correlation_id,
            priority=spec.priority,
            allowed_sources=None if spec.allowed_sources is None else list(spec.allowed_sources),
            signature=None if spec.signature is None else SignatureRecord.of(spec.signature),
            cloud_init=spec.cloud_init,
        )

    def fields(self) -> dict[str, object]:
        """Return the fields as they are stored. One that earlier versions did not have is left out when empty."""
        fields = msgspec.structs.asdict(self)
        for name in ("signature", "cloud_init"):
            if fields[name] is None:
                del fields[name]
        return fields

    def spec(self) -> JobSpec:
        """Return the spec. Raises InvalidRequestError."""
        return JobSpec(
            image_url=_parse_url(self.image_url),
            image_format=self.image_type,
            volume_name=self.volume_name,
            size_bytes=(self.volume_size_gb or 0) * GIB,
            target=self.target,
            checksum=_parse_checksum(self.checksum) if self.checksum else None,
            correlation_id=self.correlation_id,
            priority=self.priority,
            allowed_sources=None if self.allowed_sources is None else tuple(self.allowed_sources),
            signature=self.signature.settings() if self.signature else None,
            cloud_init=self.cloud_init,
        )


class JobRecord(Job, frozen=True, kw_only=True):
    """A job in the store."""

    spec: SpecRecord  # type: ignore[assignment]


_DECODER = msgspec.json.Decoder(JobRecord)


def encode(job: Job) -> bytes:
    """Return the job as JSON."""
    fields = {**msgspec.structs.asdict(job), "spec": SpecRecord.of(job.spec).fields()}
    kept = {name: value for name, value in fields.items() if name not in _LATER or value is not None}
    return msgspec.json.encode(kept)


def decode(body: bytes) -> Job:
    """Return the job. Raises ValueError (msgspec's errors are such) or RecursionError for anything else."""
    found = _DECODER.decode(body)
    try:
        spec = found.spec.spec()
    except InvalidRequestError as error:
        raise ValueError(error.message) from error
    return Job(**{**msgspec.structs.asdict(found), "spec": spec})


def same_request(earlier: JobSpec, spec: JobSpec, cloud_init: CloudInit | None) -> bool:
    """Return whether two requests under one idempotency key are equal. ``cloud_init`` is the data of ``spec``."""
    if (earlier.cloud_init is None) != (cloud_init is None):
        return False
    if earlier.cloud_init is not None and cloud_init is not None and not cloud_init.has_seal(earlier.cloud_init):
        return False
    return _comparable(earlier) == _comparable(spec)


def _comparable(spec: JobSpec) -> SpecRecord:
    return msgspec.structs.replace(SpecRecord.of(spec), allowed_sources=None, cloud_init=None, signature=None)
