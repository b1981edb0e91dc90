"""Accepts jobs, gives them slots, ends them. Owns which jobs are active; what a job does is the pipeline's.

What was accepted is on disk before ``submit`` returns. A job's error stays inside its slot. A cancel returns when
the job has ended, rollback included.
"""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from provisioner.contracts import Checksum, CloneTarget, ImageUrl, JobEvent, ProvisionedBy
from provisioner.contracts.errors import (
    CancelError,
    ConflictError,
    JobNotFoundError,
    NotFoundError,
    ProvisionerError,
    TooManyRequestsError,
    UnavailableError,
)
from provisioner.contracts.tasks import first_cause
from provisioner.jobs.job import Job, JobSpec, after_restart, conclude
from provisioner.jobs.queue import WaitingLine
from provisioner.jobs.states import Status
from provisioner.pipeline.plan import Outcome
from provisioner.pipeline.progress import Progress, Snapshot, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.config import JobSettings
    from provisioner.jobs.announce import Announcer
    from provisioner.jobs.store import JobStore
    from provisioner.observe.metrics import Metrics
    from provisioner.pipeline.run import Pipeline

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class ActiveJob:
    """A job that has not ended, and what is needed to follow and to stop it."""

    job: Job
    progress: Progress = field(default_factory=Progress)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    cancel_requested: bool = False
    interrupted: bool = False


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
        self._metrics = metrics
        self._announcer = announcer
        self._on_end = on_end
        self._active: dict[str, ActiveJob] = {}
        self._line: WaitingLine[ActiveJob] = WaitingLine()
        self._submitting = trio.Lock()
        self._removing: set[tuple[str, str]] = set()
        self._unrecovered: set[str] = set()
        self.draining = False

    # --- life ---

    async def recover(self) -> None:
        """Bring back what an earlier life left: debris away, unfinished jobs into the line. Before ``run``."""
        for name in self._pipeline.back_ends.targets:
            try:
                await self._recover_target(name)
            except ProvisionerError as error:
                # The other targets can work; this one is tried again before its first job.
                log.error("a target could not be recovered", target=name, reason=error.message)
                self._unrecovered.add(name)
        now = time.time()
        for old in await self._store.unfinished():
            outcome = await self._outcome_of(old)
            job = after_restart(old, outcome, self._settings.on_restart, self._settings.max_attempts, now)
            if job is not old:
                await self._store.put(job)
                log.info("found a job that was running", job_id=job.job_id, becomes=job.status, attempts=job.attempts)
            if job.status is Status.PENDING:
                self._enqueue(ActiveJob(job))
            elif job.status.ended:
                self._on_end(job)
        await self._store.forget_before(now - self._settings.keep_history)

    async def _outcome_of(self, job: Job) -> Outcome | None:
        """What a job found running made, where it was committed in the moment before the end."""
        target = self._pipeline.back_ends.targets.get(job.spec.target or "")
        if job.status is not Status.RUNNING or target is None or job.spec.volume_name is None:
            return None
        try:
            volume = await target.find(job.spec.volume_name)
        except ProvisionerError:
            return None
        made_by = volume.provenance.job_id if volume is not None and volume.provenance is not None else None
        if made_by != job.job_id:
            return None
        by = ProvisionedBy.CLONE if isinstance(target, CloneTarget) else ProvisionedBy.COPY
        return Outcome(None, None, volume, by)

    async def _recover_target(self, name: str) -> None:
        running = frozenset(active.job.job_id for active in self._running())
        for decision in await self._pipeline.back_ends.targets[name].recover(running):
            log.info("recovered", target=name, decision=decision)
        self._unrecovered.discard(name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work on jobs until cancelled; jobs running then are rolled back and stay accepted."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._settings.max_concurrent):
                nursery.start_soon(self._worker)
            task_status.started()

    async def drain(self) -> None:
        """No new jobs, neither from clients nor out of the line; wait for the running ones as the config grants."""
        self.draining = True
        self._pipeline.cache.stop()
        self._line.stop()
        with trio.move_on_after(self._settings.shutdown_grace):
            for active in self._running():
                await active.ended.wait()
        for active in self._running():
            active.interrupted = True

    def _running(self) -> list[ActiveJob]:
        return [active for active in self._active.values() if active.job.status is Status.RUNNING]

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
                self._enqueue(ActiveJob(job))
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
        if len(self._line) >= self._settings.max_queued:
            raise TooManyRequestsError(f"{len(self._line)} jobs are waiting already; try again later")

    def _check_share(self, principal: str | None, max_jobs: int | None) -> None:
        has = sum(active.job.principal == principal for active in self._active.values())
        if max_jobs is not None and has >= max_jobs:
            raise TooManyRequestsError(f"you have {has} jobs pending or running, as many as you may; try again later")

    def _check_free(self, target: str, volume: str) -> None:
        """Raise ConflictError where a job or a removal works on that volume."""
        for active in self._active.values():
            if (active.job.spec.target, active.job.spec.volume_name) == (target, volume):
                raise ConflictError(f"job {active.job.job_id} for the volume {volume} is still {active.job.status}")
        if (target, volume) in self._removing:
            raise ConflictError(f"the volume {volume} is being removed")

    async def find(self, job_id: str) -> tuple[Job, Snapshot | None]:
        """The job, and how far it is where it has not ended. Raises JobNotFoundError."""
        active = self._active.get(job_id)
        if active is not None:
            return active.job, active.progress.snapshot()
        job = await self._store.get(job_id)
        if job is None:
            raise JobNotFoundError
        return job, None

    def snapshot(self, job_id: str) -> Snapshot | None:
        """How far an active job is."""
        active = self._active.get(job_id)
        return active.progress.snapshot() if active else None

    async def cancel(self, job_id: str) -> Job:
        """Cancel and wait until the job has ended. Raises JobNotFoundError; CancelError where it is too late."""
        active = self._active.get(job_id)
        if active is not None:
            await self._cancel(active)
            job = active.job
            if job.status is Status.CANCELLED:
                return job
        job, _ = await self.find(job_id)
        if job.status is Status.FAILED and active is not None:
            raise ProvisionerError(f"the job was stopped, but: {job.error}")
        raise CancelError(f"cannot cancel job in '{job.status}' status")

    async def _cancel(self, active: ActiveJob) -> None:
        if active.job.status is Status.PENDING and not active.cancel_requested:
            active.cancel_requested = True
            self._line.discard(active)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await self._end(active, active.job.cancelled(time.time()))
        active.cancel_requested = True
        active.scope.cancel(reason="somebody asked for it")
        await active.ended.wait()

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
        return len(self._active)

    @property
    def active_ids(self) -> frozenset[str]:
        """Ids of the jobs pending or running."""
        return frozenset(self._active)

    # --- slots ---

    def _enqueue(self, active: ActiveJob) -> None:
        job = active.job
        self._active[job.job_id] = active
        active.progress.on_stage = lambda stage: self._announce(active, stage)
        self._line.put(active, job.spec.priority)
        self._count()
        self._announce(active, Stage.QUEUED)

    async def _worker(self) -> None:
        while True:
            active = await self._line.get()
            job = active.job
            with structlog.contextvars.bound_contextvars(
                job_id=job.job_id, request_id=job.request_id, correlation_id=job.spec.correlation_id
            ):
                await self._work_on(active)

    async def _work_on(self, active: ActiveJob) -> None:
        begun = time.monotonic()
        done: list[Outcome] = []
        error: BaseException | None = None
        active.job = active.job.started(time.time())
        self._metrics.jobs.labels("started").inc()
        self._count()
        try:
            with active.scope:
                await self._store.put(active.job)
                log.info("job started", attempt=active.job.attempts)
                if active.job.spec.target in self._unrecovered:
                    await self._recover_target(active.job.spec.target)
                await self._pipeline.run(active.job.request(), active.progress, done)
        except* Exception as group:  # noqa: BLE001 - the boundary: a job's error must not reach another job
            error = first_cause(group)
        finally:
            # The job's own scope is left: a cancel that is still felt here comes from the service's end.
            active.interrupted |= trio.current_effective_deadline() == -math.inf
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await self._conclude(active, done[0] if done else None, error, time.monotonic() - begun)

    async def _conclude(
        self, active: ActiveJob, outcome: Outcome | None, error: BaseException | None, seconds: float
    ) -> None:
        if error is not None and not isinstance(error, ProvisionerError):
            log.error("unexpected error in a job", exc_info=error)
        job = conclude(
            active.job,
            outcome,
            error,
            cancel_requested=active.cancel_requested,
            interrupted=active.interrupted,
            staged=active.progress.has_begun(Stage.ALLOCATING),
            timings=active.progress.timings(),
            now=time.time(),
        )
        if job.status.ended and job.cache_hit is None:
            job = msgspec.structs.replace(job, cache_hit=active.progress.cache_hit)
        if job.status.ended:
            self._count_end(job, seconds, active.progress.processed(Stage.CONVERTING))
        await self._end(active, job)
        log.info("job ended", status=job.status, error=job.error, seconds=round(seconds, 3))

    def _count_end(self, job: Job, seconds: float, written: int) -> None:
        self._metrics.job_ended(
            job.status.value,
            seconds,
            written=written,
            cache_hit=job.cache_hit,
            provisioned_by=job.volume.provisioned_by.value if job.volume else None,
            stages=job.timings if job.status is Status.COMPLETED else None,
        )

    async def _end(self, active: ActiveJob, job: Job) -> None:
        """Keep the result, first on disk, then in memory; without the disk it is kept in memory only."""
        try:
            await self._store.put(job)
        except UnavailableError as error:
            log.error("the end of a job could not be stored", job_id=job.job_id, reason=error.message)
        finally:
            active.job = job
            self._announce(active, active.progress.stage)
            del self._active[job.job_id]
            active.ended.set()
            self._count()
            if job.status.ended:  # last: whoever hears of it cannot keep the job from having ended
                self._on_end(job)

    def _count(self) -> None:
        self._metrics.active_jobs.set(len(self._active))
        self._metrics.queue_depth.set(len(self._line))

    def _announce(self, active: ActiveJob, stage: Stage) -> None:
        job, snapshot = active.job, active.progress.snapshot()
        self._announcer.announce(
            JobEvent(
                job_id=job.job_id,
                status=job.status.value,
                stage=stage.value,
                percent=100.0 if job.status is Status.COMPLETED else snapshot.percent,
                volume_name=job.spec.volume_name,
                image_url=job.spec.image_url,
                correlation_id=job.spec.correlation_id,
                error=job.error,
                at=time.time(),
            )
        )
