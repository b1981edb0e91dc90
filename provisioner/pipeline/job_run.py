"""One run of a job: what was asked for, how far it is, and what it made. Values only; ``pipeline`` does the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from provisioner.config import SignatureSettings
from provisioner.contracts import Checksum, ImageUrl, Provenance, Signer, StageRequest
from provisioner.pipeline.cloud_init import seed_name
from provisioner.pipeline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from provisioner.contracts import ProvisionedBy, Replaced, Volume


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for, parsed. If ``volume_name`` is None, the image is only fetched into the cache.

    ``size_bytes`` is 0 for such a fetch, and if the volume is to be the smallest that fits the image.
    ``allowed_sources`` is not part of the request: it is what the client's limits allowed when it submitted the job,
    None if they allow all. ``signature`` is what a named image demands instead of its source. ``cloud_init`` is the
    seal of the cloud-init data, which itself is never in a spec; None if the job has none.
    """

    image_url: ImageUrl
    image_format: str = "qcow2"
    volume_name: str | None = None
    size_bytes: int = 0
    target: str | None = None
    checksum: Checksum | None = None
    correlation_id: str | None = None
    priority: int = 0
    allowed_sources: tuple[str, ...] | None = None
    signature: SignatureSettings | None = None
    cloud_init: str | None = None

    @property
    def seed_name(self) -> str | None:
        """Return the name of the cloud-init seed volume, or None if the job makes none."""
        return None if self.cloud_init is None or self.volume_name is None else seed_name(self.volume_name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a completed job made. ``volume`` and ``provisioned_by`` are None for a fetch into the cache.

    ``seed`` is the cloud-init seed of the volume, if it has one.

    ``cache_hit``, ``image_path`` and ``bytes_total``, the bytes of the image that were written or fetched, are None if
    a restart lost them.
    """

    cache_hit: bool | None
    image_path: str | None
    volume: Volume | None = None
    provisioned_by: ProvisionedBy | None = None
    bytes_total: int | None = None
    signed_by: Signer | None = None
    seed: Volume | None = None


@dataclass(slots=True, eq=False)
class JobRun:
    """A job while it runs. ``outcome`` is set at the moment it is irrevocable, whatever happens afterwards.

    ``replaces`` is the volume to be replaced, if the target itself does not report it. ``checksum`` is the client's own
    until the pipeline has looked for one beside the image. ``size_bytes`` is the volume's size, 0 until the image has
    decided it. ``signed_by`` is set when the demanded signature is verified. ``warning`` is what the client should
    know although the job goes on. ``seed_image`` is the file with the cloud-init image, if the job has one.

    ``pinned_url`` is the url that ``spec.image_url`` stood for when the job first asked its source; later runs of the
    job use it. ``on_pin`` stores it.
    """

    job_id: str
    created_at: float
    spec: JobSpec
    progress: Progress = field(default_factory=Progress)
    outcome: Outcome | None = None
    warning: str | None = None
    pinned_url: ImageUrl | None = None
    on_pin: Callable[[], Awaitable[None]] | None = None
    replaces: Replaced | None = None
    signed_by: Signer | None = None
    seed_image: Path | None = None
    checksum: Checksum | None = field(init=False)
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.checksum = self.spec.checksum
        self.size_bytes = self.spec.size_bytes

    async def pin(self, pinned: ImageUrl | None) -> None:
        """Keep what the source says that the image's url stands for; the first answer counts."""
        if pinned is not None and self.pinned_url is None:
            self.pinned_url = pinned
            if self.on_pin is not None:
                await self.on_pin()

    def stage_request(
        self,
        image_digest: str | None = None,
        *,
        name: str | None = None,
        size_bytes: int | None = None,
        data_bytes: int | None = None,
    ) -> StageRequest:
        """Return the stage request for the job's volume; ``name`` and ``size_bytes`` override the volume's.

        ``data_bytes`` is how much of it will be written, if known.
        """
        spec = self.spec
        # A volume outlives its job: the query, which may hold a signature, is not written into its tags.
        signed_by = None if self.signed_by is None else self.signed_by.tag
        provenance = Provenance(self.job_id, spec.image_url.without_query, image_digest, self.created_at, signed_by)
        return StageRequest(name or spec.volume_name or "", size_bytes or self.size_bytes, provenance, data_bytes)
