"""Accepts jobs, finds them, cancels them, and removes volumes. Owns what may be asked for; ``slots`` does the work.

What was accepted is on disk before ``submit`` returns. A cancel returns when the job has ended, rollback included.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.errors import (
    CancelError,
    ConflictError,
    JobNotFoundError,
    NotFoundError,
    ProvisionerError,
    TooManyRequestsError,
    UnavailableError,
)
from provisioner.jobs.job import Job, JobSpec, after_restart
from provisioner.jobs.recovery import Recovery
from provisioner.jobs.slots import Slots
from provisioner.jobs.states import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.config import JobSettings
    from provisioner.jobs.announce import Announcer
    from provisioner.jobs.store import JobStore
    from provisioner.observe.metrics import Metrics
    from provisioner.pipeline.progress import Snapshot
    from provisioner.pipeline.run import Pipeline

log = structlog.get_logger(__name__)


class Supervisor:
    """The jobs of this host."""

    def __init__(
        self,
        pipeline: Pipeline,
        store: JobStore,
        settings: JobSettings,
        metrics: Metrics,
        announcer: Announcer,
        on_end: Callable[[Job], None] = lambda job: None,  # noqa: ARG005 - nobody wants to know
    ) -> None:
        self._pipeline = pipeline
        self._store = store
        self._settings = settings
        self._on_end = on_end
        self._recovery = Recovery(pipeline.back_ends.targets)
        self._slots = Slots(pipeline, self._recovery, store, metrics, announcer, on_end)
        self._submitting = trio.Lock()
        self._removing: set[tuple[str, str]] = set()
        self.draining = False

    # --- life ---

    async def recover(self) -> None:
        """Bring back what an earlier life left: debris away, unfinished jobs into the line. Before ``run``."""
        await self._recovery.everywhere()
        now = time.time()
        for old in await self._store.unfinished():
            outcome = await self._recovery.outcome_of(old)
            job = after_restart(old, outcome, self._settings.on_restart, self._settings.max_attempts, now)
            if job is not old:
                await self._store.put(job)
                log.info("found a job that was running", job_id=job.job_id, becomes=job.status, attempts=job.attempts)
            if job.status is Status.PENDING:
                self._slots.enqueue(job)
            elif job.status.ended:
                self._on_end(job)
        await self._store.forget_before(now - self._settings.keep_history)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work on jobs until cancelled; jobs running then are rolled back and stay accepted."""
        await self._slots.run(self._settings.max_concurrent, task_status=task_status)

    async def drain(self) -> None:
        """No new jobs, neither from clients nor out of the line; wait for the running ones as the config grants."""
        self.draining = True
        self._pipeline.cache.stop()
        self._slots.stop()
        with trio.move_on_after(self._settings.shutdown_grace):
            for active in self._slots.running():
                await active.ended.wait()
        for active in self._slots.running():
            active.interrupted = True

    # --- for the API ---

    async def submit(
        self,
        spec: JobSpec,
        *,
        request_id: str,
        principal: str | None,
        idempotency_key: str | None,
        max_jobs: int | None = None,
    ) -> Job:
        """Accept a job; it is on disk when this returns. ``max_jobs``: what the principal may have active.

        Raises InvalidRequestError and kin, ConflictError, TooManyRequestsError, UnavailableError.
        """
        spec = self._checked(spec)
        key = f"{principal}\n{idempotency_key}" if idempotency_key else None
        async with self._submitting:
            earlier = await self._store.by_key(key) if key else None
            if earlier is not None:
                if earlier.spec.fingerprint != spec.fingerprint:
                    raise ConflictError(f"the Idempotency-Key was used for another request, job {earlier.job_id}")
                return earlier
            self._check_admission(spec)
            self._check_share(principal, max_jobs)
            now = time.time()
            job = Job(
                job_id=str(uuid.uuid4()),
                spec=spec,
                status=Status.PENDING,
                created_at=now,
                updated_at=now,
                request_id=request_id,
                principal=principal,
                idempotency_key=key,
            )
            # Not to be interrupted: a client that hangs up here must not leave a job on disk that nobody works on.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await self._store.put(job)
                self._slots.enqueue(job)
        image = ImageUrl.parse(spec.image_url).without_query
        log.info("job accepted", job_id=job.job_id, volume=spec.volume_name, image=image)
        return job

    def _checked(self, spec: JobSpec) -> JobSpec:
        """Refuse what can be refused without asking anybody; fill in the default target."""
        if spec.checksum is not None:
            Checksum.parse(spec.checksum)
        back_ends = self._pipeline.back_ends
        back_ends.source_for(spec.image_url)
        back_ends.converter(spec.image_type)
        if spec.volume_name is None:
            return spec
        target = back_ends.target(spec.target)
        target.check_name(spec.volume_name)
        return msgspec.structs.replace(spec, target=target.name)

    def _check_admission(self, spec: JobSpec) -> None:
        if self.draining:
            raise UnavailableError("the service is stopping and takes no new jobs")
        if spec.volume_name is not None:
            self._check_free(spec.target or "", spec.volume_name)
        if self._slots.waiting >= self._settings.max_queued:
            raise TooManyRequestsError(f"{self._slots.waiting} jobs are waiting already; try again later")

    def _check_share(self, principal: str | None, max_jobs: int | None) -> None:
        has = sum(active.job.principal == principal for active in self._slots.active.values())
        if max_jobs is not None and has >= max_jobs:
            raise TooManyRequestsError(f"you have {has} jobs pending or running, as many as you may; try again later")

    def _check_free(self, target: str, volume: str) -> None:
        """Raise ConflictError where a job or a removal works on that volume."""
        for active in self._slots.active.values():
            if (active.job.spec.target, active.job.spec.volume_name) == (target, volume):
                raise ConflictError(f"job {active.job.job_id} for the volume {volume} is still {active.job.status}")
        if (target, volume) in self._removing:
            raise ConflictError(f"the volume {volume} is being removed")

    async def find(self, job_id: str) -> tuple[Job, Snapshot | None]:
        """The job, and how far it is where it has not ended. Raises JobNotFoundError."""
        active = self._slots.active.get(job_id)
        if active is not None:
            return active.job, active.progress.snapshot()
        job = await self._store.get(job_id)
        if job is None:
            raise JobNotFoundError
        return job, None

    def snapshot(self, job_id: str) -> Snapshot | None:
        """How far an active job is."""
        active = self._slots.active.get(job_id)
        return active.progress.snapshot() if active else None

    async def cancel(self, job_id: str) -> Job:
        """Cancel and wait until the job has ended. Raises JobNotFoundError; CancelError where it is too late."""
        active = self._slots.active.get(job_id)
        if active is not None:
            await self._slots.cancel(active)
            job = active.job
            if job.status is Status.CANCELLED:
                return job
        job, _ = await self.find(job_id)
        if job.status is Status.FAILED and active is not None:
            raise ProvisionerError(f"the job was stopped, but: {job.error}")
        raise CancelError(f"cannot cancel job in '{job.status}' status")

    async def remove_volume(self, target_name: str, volume: str) -> None:
        """Remove a volume this service provisioned, while no job for it can begin.

        Raises NotFoundError, ConflictError while a job is active for it, VolumeInUseError.
        """
        target = self._pipeline.back_ends.targets.get(target_name)
        if target is None:
            raise NotFoundError(f"no block target {target_name!r} is configured")
        self._check_free(target_name, volume)
        self._removing.add((target_name, volume))
        try:
            await self._pipeline.check_guards(target, volume)
            await target.remove(volume)
        finally:
            self._removing.discard((target_name, volume))
        log.info("volume removed", target=target_name, volume=volume)

    @property
    def active_count(self) -> int:
        """Jobs pending or running."""
        return len(self._slots.active)

    @property
    def active_ids(self) -> frozenset[str]:
        """Ids of the jobs pending or running."""
        return frozenset(self._slots.active)
