"""One run of a job: what it is to make, how far it is, and what it made. Values only; ``run`` does the work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.contracts import ImageUrl, Provenance, StageRequest
from provisioner.pipeline.progress import Progress

if TYPE_CHECKING:
    from provisioner.contracts import Checksum, ProvisionedBy, Volume


@dataclass(frozen=True, slots=True)
class Request:
    """What a job is to do. ``volume_name`` None: the image is only fetched into the cache. Sizes in bytes.

    ``allowed_sources``: what its caller was limited to when it submitted the job; None if it was not limited.
    """

    job_id: str
    image_url: str
    image_type: str
    volume_name: str | None
    volume_size: int
    target: str
    checksum: Checksum | None
    created_at: float
    allowed_sources: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a completed job made. ``volume`` and ``provisioned_by`` are None for a fetch into the cache.

    ``cache_hit`` and ``image_path`` are None if a restart lost them.
    """

    cache_hit: bool | None
    image_path: str | None
    volume: Volume | None = None
    provisioned_by: ProvisionedBy | None = None


@dataclass(slots=True, eq=False)
class JobRun:
    """A job while it runs. ``outcome`` is set at the moment it is irrevocable, whatever happens afterwards.

    ``checksum`` is the request's own until the pipeline has looked for one beside the image.
    """

    request: Request
    progress: Progress = field(default_factory=Progress)
    outcome: Outcome | None = None
    checksum: Checksum | None = field(init=False)

    def __post_init__(self) -> None:
        self.checksum = self.request.checksum

    def stage_request(
        self,
        image_digest: str | None = None,
        *,
        name: str | None = None,
        size: int | None = None,
        data: int | None = None,
    ) -> StageRequest:
        """Return the stage request for the job's volume; ``name`` and ``size`` override the volume's.

        ``data`` is how many bytes of it will be written, if known.
        """
        request = self.request
        # A volume outlives its job: the query, which may hold a signature, is not written into its tags.
        image_url = ImageUrl.parse(request.image_url).without_query
        provenance = Provenance(request.job_id, image_url, image_digest, request.created_at)
        return StageRequest(name or request.volume_name or "", size or request.volume_size, provenance, data)
