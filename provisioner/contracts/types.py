"""Frozen value types exchanged between the core and its back ends.

Sizes are in bytes and times in seconds since the epoch (UTC), unless a name says otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.contracts.urls import ImageUrl

GIB = 1024**3
MIB = 1024**2

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_ALGORITHM = {32: "md5", 40: "sha1"} | {length: algorithm for algorithm, length in _HEX_LENGTH.items()}
# Two images with the same digest can be made.
_TOO_WEAK = {"md5", "sha1"}


@dataclass(frozen=True, slots=True)
class Checksum:
    """An expected digest: ``algorithm`` is ``sha256`` or ``sha512``, ``hex`` is in lower case."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Parse ``sha256:HEX``, ``sha512:HEX`` or the digits alone. Raises InvalidRequestError."""
        prefix, _, digits = text.strip().lower().rpartition(":")
        algorithm, digits = prefix.strip() or _ALGORITHM.get(len(digits.strip()), ""), digits.strip()
        if algorithm in _TOO_WEAK:
            raise InvalidRequestError(f"checksum: {algorithm} is too weak; give the image's sha256 or sha512")
        length = _HEX_LENGTH.get(algorithm)
        if length is None or not re.fullmatch(rf"[0-9a-f]{{{length}}}", digits):
            raise InvalidRequestError("checksum must be 64 (sha256) or 128 (sha512) hexadecimal digits")
        return cls(algorithm, digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """What a server reports about an image before the download.

    ``size`` is in bytes, None if unknown. ``version`` changes whenever the content changes (a strong ETag, an object
    version); None if the server has none. ``digest`` is what the server itself says that the whole image's digest is.
    ``pinned`` is a url of the same source that always means this very image, if ``url`` may come to mean another one;
    the image is fetched from it.
    """

    url: ImageUrl
    size: int | None
    version: str | None
    accepts_ranges: bool
    digest: Checksum | None = None
    pinned: ImageUrl | None = None


class Placement(StrEnum):
    """How a target places a volume under its name."""

    NEW = "new"
    SWAP = "swap"  # stage beside the old volume, swap the names at commit
    IN_PLACE = "in-place"  # overwrite the old volume: only a verified image may be written


class ProvisionedBy(StrEnum):
    """How a volume was filled."""

    COPY = "copy"
    CLONE = "clone"


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed an image: the ``kind`` of signature, the key's fingerprint or id, and the name that goes with it.

    ``name`` is the key's user id (OpenPGP) or the trusted comment (minisign), empty if there is none.
    """

    kind: str
    key: str
    name: str = ""

    @property
    def tag(self) -> str:
        """Return the kind and the key, such as ``openpgp:9D2E...``."""
        return f"{self.kind}:{self.key}"

    @classmethod
    def of_tag(cls, tag: str | None) -> Signer | None:
        """Return the signer whose ``tag`` this is, without a name; None for None."""
        if tag is None:
            return None
        kind, _, key = tag.partition(":")
        return cls(kind, key)


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a volume. A target stores it with the volume, so no database is needed.

    ``signed_by`` is the ``Signer.tag`` of the image's signature, None if none was demanded. ``seed_of`` is the name of
    the volume whose cloud-init seed this one is; a seed has no image and its url is empty.
    """

    job_id: str
    image_url: str
    image_digest: str | None  # "sha256:HEX"; None until the image is verified
    created_at: float
    signed_by: str | None = None
    seed_of: str | None = None


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A volume to stage. ``size_bytes`` is the requested size; the target may round it up.

    ``data_bytes`` estimates how much will be written, None if unknown. A target that allocates on demand checks its
    free space against it. ``keep_seconds``: a KeepingTarget keeps the volume that this one replaces for at least so
    long, whatever its settings say.
    """

    name: str
    size_bytes: int
    provenance: Provenance
    data_bytes: int | None = None
    keep_seconds: float = 0.0

    @property
    def job_id(self) -> str:
        """Return the id of the job that owns the staged volume."""
        return self.provenance.job_id


@dataclass(frozen=True, slots=True)
class Device:
    """A block device or file to write an image onto.

    ``reads_zero``: the whole device reads as zeros, so a converter may skip writing them. ``zero_tail``: the range past
    the image's end must read as zeros too; unless ``reads_zero`` is set, the copy step zeroes it.
    """

    path: str
    size_bytes: int
    reads_zero: bool
    zero_tail: bool = True


class Owner(StrEnum):
    """Who created a volume."""

    OURS = "ours"  # this service
    FOREIGN = "foreign"

    @classmethod
    def of(cls, provenance: Provenance | None) -> Owner:
        """Return the owner of a volume with that provenance."""
        return cls.FOREIGN if provenance is None else cls.OURS


@dataclass(frozen=True, slots=True)
class Replaced:
    """A volume that a commit or a restore replaced.

    ``kept_as`` is the name under which the target keeps it until ``kept_until``; both are None if it was removed.
    """

    volume: str
    owner: Owner
    kept_as: str | None = None
    kept_until: float | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume on a target. ``provenance`` is None if this service did not create it.

    ``path`` is how a guest's configuration names it: a path on this host, or a text such as ``rbd:POOL/NAME`` on a
    target whose volumes are not local. Only guards may interpret it.
    ``replaced`` is set only on the volume that a commit or a restore returns, if another one had its name.
    """

    name: str
    target: str
    path: str
    size_bytes: int
    provenance: Provenance | None = None
    replaced: Replaced | None = field(default=None, compare=False)

    @property
    def owner(self) -> Owner:
        return Owner.of(self.provenance)


@dataclass(frozen=True, slots=True)
class KeptVolume:
    """A replaced volume that a target keeps until ``kept_until``.

    ``kept_as`` is its name now, which is not a valid volume name; ``volume`` is the name that it had. ``job_id``
    identifies the job or the restore that replaced it.
    """

    kept_as: str
    volume: str
    target: str
    size_bytes: int
    job_id: str
    replaced_at: float
    kept_until: float
    provenance: Provenance | None = None

    @property
    def owner(self) -> Owner:
        return Owner.of(self.provenance)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Total and free space of a target; the percentages exist for thin pools only.

    ``freeable_bytes`` is the space of kept volumes that a job may remove; it is not part of ``free_bytes``.
    """

    total_bytes: int
    free_bytes: int
    data_percent: float | None = None
    metadata_percent: float | None = None
    freeable_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """A read-only volume that contains one complete image, from which volumes are cloned."""

    name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VolumeUser:
    """A user of a volume: its ``kind``, such as ``domain`` or ``process``, and its name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check on this host: ``what`` was found, and how to ``fix`` it if it is wrong.

    ``ok`` is None if it could not be checked here; ``what`` says why.
    """

    ok: bool | None
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """A change of a job, a volume or a cached image, as observers receive it.

    ``kind`` is such as ``job.completed``, ``volume.removed`` or ``cache.added``. ``event_id`` is unique, and the same
    each time the same end of a job is told. ``at`` is in seconds since the epoch. ``data`` is ready for JSON, and has
    no secrets and no queries of urls.
    """

    event_id: str
    kind: str
    at: float
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A change of a job, as observers receive it.

    ``accepted_at`` is when the job was accepted. ``stages``, at the end of a job, has the begin and the end of each
    stage of its last run; stages may overlap. ``traceparent`` is that header of the request (W3C Trace Context).
    """

    job_id: str
    status: str
    stage: str
    percent: float
    volume_name: str | None
    image_url: str
    correlation_id: str | None
    error: str | None
    at: float
    accepted_at: float = 0.0
    stages: Mapping[str, tuple[float, float]] | None = None
    traceparent: str | None = None
