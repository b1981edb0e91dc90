"""A job: its spec, its status and its result. Values and pure decisions only."""

from __future__ import annotations

import msgspec

from provisioner.contracts import Owner, ProvisionedBy, Replaced, Signer
from provisioner.contracts.errors import ProvisionerError, RollbackError
from provisioner.contracts.reasons import SERVICE_ENDED
from provisioner.jobs.states import Event, Status, after
from provisioner.pipeline.job_run import JobSpec, Outcome


class VolumeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The volume a completed job made. ``size_bytes`` is its real size."""

    name: str
    path: str
    size_bytes: int
    target: str
    provisioned_by: ProvisionedBy


class SeedInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud-init seed that a completed job made beside its volume. ``size_bytes`` is its real size."""

    name: str
    path: str
    size_bytes: int


class ReplacedInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The volume that a job replaced. ``kept_as`` and ``kept_until`` are None if it was not kept."""

    volume: str
    owner: Owner
    kept_as: str | None = None
    kept_until: float | None = None

    @classmethod
    def of(cls, replaced: Replaced) -> ReplacedInfo:
        """Return what a target says it has replaced."""
        return cls(
            volume=replaced.volume,
            owner=replaced.owner,
            kept_as=replaced.kept_as,
            kept_until=replaced.kept_until,
        )


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted job. Times in seconds since the epoch; ``attempts`` counts starts; ``timings``: seconds per stage.

    ``bytes_total``: the bytes that a completed job wrote or fetched; ``request``: the fields of the client's request
    except its url, which ``spec`` has. Both are None for a job that an older version stored. ``replaced``: the
    volume that had the name before. ``signed_by``: who signed the image, if that was demanded. ``pinned_url``: what the
    image's url stood for when the job asked its source, if it may come to mean another image, such as a tag.
    ``warnings``: what the client should know although the job completed. ``traceparent``: the request's header.
    ``error_reason``: see ``contracts.reasons``; None for a job that an older version stored.
    """

    job_id: str
    spec: JobSpec
    status: Status
    created_at: float
    updated_at: float
    attempts: int = 0
    request_id: str | None = None
    principal: str | None = None
    idempotency_key: str | None = None
    cache_hit: bool | None = None
    image_path: str | None = None
    error: str | None = None
    error_reason: str | None = None
    volume: VolumeInfo | None = None
    timings: dict[str, float] | None = None
    bytes_total: int | None = None
    request: dict[str, str | int] | None = None
    replaced: ReplacedInfo | None = None
    signed_by: Signer | None = None
    warnings: tuple[str, ...] | None = None
    pinned_url: str | None = None
    seed: SeedInfo | None = None
    traceparent: str | None = None

    def started(self, now: float) -> Job:
        """Return the job as running."""
        return msgspec.structs.replace(
            self, status=after(self.status, Event.START), updated_at=now, attempts=self.attempts + 1
        )

    def completed(self, outcome: Outcome, timings: dict[str, float], now: float) -> Job:
        """Return the job as completed."""
        volume, seed = outcome.volume, outcome.seed
        return msgspec.structs.replace(
            self,
            status=after(self.status, Event.COMPLETE),
            updated_at=now,
            cache_hit=outcome.cache_hit,
            image_path=outcome.image_path,
            timings=timings,
            bytes_total=outcome.bytes_total,
            signed_by=outcome.signed_by,
            seed=None if seed is None else SeedInfo(name=seed.name, path=seed.path, size_bytes=seed.size_bytes),
            replaced=None if volume is None or volume.replaced is None else ReplacedInfo.of(volume.replaced),
            volume=None
            if volume is None or outcome.provisioned_by is None
            else VolumeInfo(
                name=volume.name,
                path=volume.path,
                size_bytes=volume.size_bytes,
                target=volume.target,
                provisioned_by=outcome.provisioned_by,
            ),
        )

    def failed(self, error: str, reason: str, now: float, timings: dict[str, float] | None = None) -> Job:
        """Return the job as failed; ``error`` is one sentence for users, ``reason`` as in ``ProvisionerError``."""
        status = after(self.status, Event.FAIL)
        return msgspec.structs.replace(
            self, status=status, updated_at=now, error=error, error_reason=reason, timings=timings
        )

    def cancelled(self, now: float) -> Job:
        """Return the job as cancelled by a client."""
        return msgspec.structs.replace(self, status=after(self.status, Event.CANCEL), updated_at=now)

    def interrupted(self, now: float) -> Job:
        """Return the job as pending again, after a shutdown or a restart."""
        return msgspec.structs.replace(self, status=after(self.status, Event.INTERRUPT), updated_at=now)


def after_restart(
    job: Job, outcome: Outcome | None, on_restart: str, max_attempts: int, now: float, *, unproven: bool = False
) -> Job:
    """Return the job that an earlier run of the service left, as it continues or ends after the restart.

    ``outcome`` is set if its volume was committed just before the service ended; ``unproven`` if its target did not
    answer, so that this is unknown.
    """
    if job.status is not Status.RUNNING:
        return job
    if outcome is not None:
        return job.completed(outcome, {}, now)
    if on_restart == "retry" and job.attempts < max_attempts:
        return job.interrupted(now)
    reason = (
        f"the service ended while the job ran, for the {job.attempts}. time"
        if on_restart == "retry"
        else "the service ended while the job ran"
    )
    rest = "it is unknown whether it made its volume" if unproven else "what the job had made was rolled back"
    return job.failed(f"{reason}; {rest}", SERVICE_ENDED, now)


def conclude(
    job: Job,
    outcome: Outcome | None,
    error: BaseException | None,
    *,
    cancel_requested: bool,
    interrupted: bool,
    staged: bool,
    timings: dict[str, float],
    now: float,
) -> Job:
    """Return the job as it ended. An outcome counts even if an error followed: the volume exists."""
    if outcome is not None:
        return job.completed(outcome, timings, now)
    if isinstance(error, RollbackError):
        return job.failed(f"{error.message}; it is retried at the next start", error.reason, now, timings)
    if cancel_requested:
        return job.cancelled(now)
    if interrupted:
        return job.interrupted(now)
    reason = error.reason if isinstance(error, ProvisionerError) else ProvisionerError.reason
    return job.failed(describe(error, staged=staged), reason, now, timings)


def describe(error: BaseException | None, *, staged: bool) -> str:
    """Return one sentence: the cause, and what was rolled back."""
    cause = error.message if isinstance(error, ProvisionerError) else f"internal error ({type(error).__name__})"
    return f"{cause}; the staged volume was removed" if staged else cause
