"""What travels between the core and its back ends: frozen values, no behaviour beyond their own checks.

Sizes are in bytes and times in seconds since the epoch (UTC) unless a name says otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from provisioner.contracts.urls import ImageUrl

GIB = 1024**3
MIB = 1024**2

_HEX_LENGTH = {"sha256": 64, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest to expect: ``algorithm`` is ``sha256`` or ``sha512``, ``hex`` in lower case."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read ``sha256:HEX`` or ``sha512:HEX``. Raises InvalidRequestError."""
        algorithm, _, digits = text.strip().partition(":")
        algorithm, digits = algorithm.lower(), digits.strip().lower()
        length = _HEX_LENGTH.get(algorithm)
        if length is None or not re.fullmatch(rf"[0-9a-f]{{{length}}}", digits):
            raise InvalidRequestError("checksum must be 'sha256:' and 64 or 'sha512:' and 128 hexadecimal digits")
        return cls(algorithm, digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """What a server says of an image before its bytes come.

    ``size`` in bytes, None where the server does not say. ``version`` changes whenever the content does (a
    strong ETag, an object version); None where the server has no such thing.
    """

    url: ImageUrl
    size: int | None
    version: str | None
    accepts_ranges: bool


class Placement(StrEnum):
    """How a target would put a volume under its name."""

    NEW = "new"
    SWAP = "swap"  # stage beside the old one, swap the names at commit
    IN_PLACE = "in-place"  # overwrite the old one: only a verified image may be written


class ProvisionedBy(StrEnum):
    """How the bytes came onto a volume."""

    COPY = "copy"
    CLONE = "clone"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a volume came from; a target keeps it with the volume, so that no database is needed to know."""

    job_id: str
    image_url: str
    image_digest: str | None  # "sha256:HEX"; None until the image is verified
    created_at: float


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A volume to stage. ``size_bytes`` is what was asked; the target may round up.

    ``data_bytes`` is about how much will be written, None where nobody knows: what a target that allocates on
    demand checks its room against.
    """

    name: str
    size_bytes: int
    provenance: Provenance
    data_bytes: int | None = None

    @property
    def job_id(self) -> str:
        """The job that owns the staged volume."""
        return self.provenance.job_id


@dataclass(frozen=True, slots=True)
class Device:
    """A block device or file to write an image onto.

    ``reads_zero``: every byte of it reads as zero now, so a converter need not write zeros. ``zero_tail``: what
    lies past the image's end is to read as zero too, and where not ``reads_zero`` whoever copies sees to it.
    """

    path: str
    size_bytes: int
    reads_zero: bool
    zero_tail: bool = True


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that stands on a target. ``provenance`` is None where this service did not make it."""

    name: str
    target: str
    path: str
    size_bytes: int
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room on a target; the percentages exist for thin pools only."""

    total_bytes: int
    free_bytes: int
    data_percent: float | None = None
    metadata_percent: float | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A read-only volume that holds one image whole, from which volumes are cloned."""

    name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class VolumeUser:
    """Who uses a volume: ``kind`` such as ``domain`` or ``process``, and its name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a back end looked at on this host: ``what`` is a sentence, ``fix`` how to put right what is not ok."""

    ok: bool
    what: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job changed; what observers see."""

    job_id: str
    status: str
    stage: str
    percent: float
    volume_name: str | None
    image_url: str
    correlation_id: str | None
    error: str | None
    at: float
