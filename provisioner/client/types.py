"""The objects of responses, as dictionaries. Sizes are in bytes, times RFC 3339 in UTC.

They are the schemas of ``api.yaml``, which explains the fields. A later version of the service may add fields.
"""

from typing import Literal, NotRequired, TypedDict

JobStatus = Literal["pending", "running", "completed", "failed", "cancelled"]
Stage = Literal[
    "queued", "checking_cache", "downloading", "verifying", "allocating", "converting", "populating", "finalizing"
]
ProvisionedBy = Literal["copy", "clone"]


class Signer(TypedDict):
    """Who signed an image."""

    kind: Literal["openpgp", "minisign", "cosign"]
    key: str
    name: NotRequired[str]


class Progress(TypedDict):
    """How far a job is; the bytes are those of its stage."""

    stage: Stage
    percent: float
    bytes_processed: NotRequired[int]
    bytes_total: NotRequired[int]
    eta_sec: NotRequired[int]


class JobVolume(TypedDict):
    """The volume that a job made."""

    name: str
    path: str
    size_bytes: int
    target: str
    provisioned_by: ProvisionedBy


class JobSeed(TypedDict):
    """The cloud-init seed that a job made."""

    name: str
    path: str
    size_bytes: int


class RequestedJob(TypedDict):
    """What a job was asked for."""

    image_url: str
    volume_name: NotRequired[str]
    volume_size_gb: NotRequired[int]
    image_type: NotRequired[str]
    target: NotRequired[str]
    checksum: NotRequired[str]
    priority: NotRequired[int]
    cloud_init: NotRequired[bool]


class ReplacedVolume(TypedDict):
    """The volume that a job or a restore replaced."""

    name: str
    ours: bool
    kept_as: NotRequired[str]
    kept_until: NotRequired[str]


class Job(TypedDict):
    """A job."""

    job_id: str
    status: JobStatus
    created_at: str
    updated_at: str
    request: RequestedJob
    attempts: int
    image_url: NotRequired[str]
    signed_by: NotRequired[Signer]
    submitted_by: NotRequired[str]
    waiting_for: NotRequired[str]
    volume_name: NotRequired[str]
    progress: NotRequired[Progress]
    correlation_id: NotRequired[str]
    cache_hit: NotRequired[bool]
    image_path: NotRequired[str]
    error: NotRequired[str]
    error_reason: NotRequired[str]
    pinned_url: NotRequired[str]
    warnings: NotRequired[list[str]]
    volume: NotRequired[JobVolume]
    seed: NotRequired[JobSeed]
    replaced: NotRequired[ReplacedVolume]
    timings: NotRequired[dict[str, float]]


class PlannedReplacement(TypedDict):
    """The volume that a job would replace."""

    name: str
    path: str
    size_bytes: int
    ours: bool
    keep_seconds: NotRequired[int]


class Refusal(TypedDict):
    """Why a job would be refused, or would fail. ``reason`` is a heading of docs/troubleshooting.md."""

    error: str
    reason: NotRequired[str]
    message: str


class Plan(TypedDict):
    """What a job would do."""

    image_url: str
    refusals: list[Refusal]
    source: NotRequired[str]
    image_size_bytes: NotRequired[int]
    download_bytes: NotRequired[int]
    checksum: NotRequired[str]
    checksum_from: NotRequired[Literal["request", "server"]]
    signed_by: NotRequired[Signer]
    cache_hit: NotRequired[bool]
    volume_name: NotRequired[str]
    seed_name: NotRequired[str]
    volume_size_bytes: NotRequired[int]
    target: NotRequired[str]
    placement: NotRequired[Literal["new", "swap", "in-place"]]
    provisioned_by: NotRequired[ProvisionedBy]
    copy_reason: NotRequired[str]
    replaces: NotRequired[PlannedReplacement]
    space_needed_bytes: NotRequired[int]
    space_free_bytes: NotRequired[int]
    space_freeable_bytes: NotRequired[int]


class Volume(TypedDict):
    """A volume that the service made."""

    name: str
    target: str
    path: str
    size_bytes: int
    image_url: str
    job_id: str
    created_at: str
    seed: NotRequired[str]
    seed_of: NotRequired[str]
    checksum: NotRequired[str]
    digest: NotRequired[str]
    signed_by: NotRequired[Signer]


class KeptVolume(TypedDict):
    """A replaced volume that is kept until ``kept_until``."""

    name: str
    target: str
    ours: bool
    kept_as: str
    size_bytes: int
    replaced_at: str
    replaced_by: str
    kept_until: str
    image_url: NotRequired[str]


class CachedImage(TypedDict):
    """An image in the cache."""

    path: str
    size: int
    checksum: str
    digest: str
    signed_by: NotRequired[Signer]
    url: NotRequired[str]
    format: NotRequired[str]
    compression: NotRequired[str]
    virtual_size: NotRequired[int]
    last_used_at: NotRequired[str]
    pinned: NotRequired[bool]


class NamedImage(TypedDict):
    """An image that has a name."""

    name: str
    image_type: str
    description: str


class ResolvedImage(TypedDict):
    """What the name of an image stands for now."""

    name: str
    image_type: str
    description: str
    image_url: str
    version: NotRequired[str]
    checksum: NotRequired[str]


class ThinPool(TypedDict):
    """How full a thin pool is."""

    data_percent: NotRequired[float]
    metadata_percent: NotRequired[float]


class Target(TypedDict):
    """A block target."""

    name: str
    plugin: str
    default: bool
    healthy: bool
    reason: NotRequired[str]
    size_bytes: NotRequired[int]
    free_bytes: NotRequired[int]
    freeable_bytes: NotRequired[int]
    thin_pool: NotRequired[ThinPool]


class Source(TypedDict):
    """A source of images."""

    name: str
    plugin: str
    urls: list[str]
    healthy: bool
    reason: NotRequired[str]


class Limits(TypedDict):
    """What a caller may use; a limit that is absent does not exist."""

    volumes: NotRequired[list[str]]
    targets: NotRequired[list[str]]
    sources: NotRequired[list[str]]
    max_jobs: NotRequired[int]


class Principal(TypedDict):
    """The caller."""

    principal: str
    name: str
    role: Literal["viewer", "operator", "admin"]
    via: Literal["certificate", "token"]
    limits: Limits
    expires_at: NotRequired[str]


class JobAccepted(TypedDict):
    """The id of a job. ``repeated``: an earlier request with the same idempotency key made it."""

    job_id: str
    repeated: NotRequired[bool]


class JobCancelled(TypedDict):
    """A job that has stopped and is rolled back."""

    status: Literal["cancelled"]
    job_id: str


class VolumeResized(TypedDict):
    """A volume with its new size."""

    status: Literal["resized", "unchanged"]
    target: str
    name: str
    path: str
    size_bytes: int


class VolumeRestored(TypedDict):
    """A volume that was brought back."""

    status: Literal["restored"]
    target: str
    name: str
    ours: bool
    restored_from: str
    replaced: NotRequired[ReplacedVolume]


class VolumeAdopted(TypedDict):
    """A volume that counts as the service's own now."""

    status: Literal["adopted"]
    target: str
    name: str


class VolumeRemoved(TypedDict):
    """A volume that was removed."""

    status: Literal["removed"]
    target: str
    name: str
    seed: NotRequired[str]


class ReplacedVolumeRemoved(TypedDict):
    """A kept volume that was removed."""

    status: Literal["removed"]
    target: str
    name: str
    kept_as: str


class CachedImageRemoved(TypedDict):
    """An image that was removed."""

    status: Literal["removed"]
    checksum: str
    digest: str


class CachedImagePinned(TypedDict):
    """An image that was pinned or unpinned."""

    status: Literal["pinned", "unpinned"]
    checksum: str
    digest: str


class CachedImageVerified(TypedDict):
    """An image that was read and compared with its digest."""

    status: Literal["intact", "removed"]
    checksum: str
    digest: str


class CachePruned(TypedDict):
    """What was removed from the cache."""

    removed: list[str]
    freed_bytes: int


class Health(TypedDict):
    """The state of the service."""

    status: Literal["healthy", "degraded"]
    timestamp: str
    version: str
    uptime: str
    warnings: NotRequired[list[str]]


class Ready(TypedDict):
    """A service that accepts jobs."""

    status: Literal["ready"]
    warnings: NotRequired[list[str]]
