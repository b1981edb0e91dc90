"""Accepts, finds and cancels jobs, removes and resizes volumes. Decides what is accepted; ``workers`` does the work.

An accepted job is on disk before ``submit`` returns. A cancel returns when the job is rolled back and its end stored.
"""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec
import structlog
import trio

from provisioner.contracts.errors import (
    CancelError,
    ConflictError,
    JobNotFoundError,
    NotFoundError,
    ProvisionerError,
    TooManyRequestsError,
    UnavailableError,
)
from provisioner.jobs.active import ActiveJob
from provisioner.jobs.feed import VolumeChange
from provisioner.jobs.job import Job, after_restart
from provisioner.jobs.kept import KeptVolumes
from provisioner.jobs.record import same_request
from provisioner.jobs.recovery import OvertakenError, Recovery
from provisioner.jobs.removal import remove_with_seed
from provisioner.jobs.reservations import Reservations
from provisioner.jobs.resize import resize
from provisioner.jobs.seed_files import SeedFiles
from provisioner.jobs.states import Status
from provisioner.jobs.workers import Workers
from provisioner.pipeline.dry_run import DryRun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from provisioner.config import JobSettings
    from provisioner.contracts import BlockTarget, Volume
    from provisioner.jobs.notify import Notifier
    from provisioner.jobs.store import JobStore
    from provisioner.observe.metrics import Metrics
    from provisioner.pipeline.cloud_init import CloudInit
    from provisioner.pipeline.dry_run import Plan
    from provisioner.pipeline.job_run import JobSpec
    from provisioner.pipeline.progress import Snapshot
    from provisioner.pipeline.run import Pipeline

log = structlog.get_logger(__name__)

# The history is pruned in steps of this many jobs with pauses between them, so that submits hardly wait for it.
_PRUNE_STEP, _PRUNE_PAUSE = 200, 0.1
# Seconds between searches for jobs that are too old; jobs are kept for days.
_PRUNE_EVERY = 3600.0


class Supervisor:
    """The jobs of this host."""

    def __init__(
        self,
        pipeline: Pipeline,
        store: JobStore,
        settings: JobSettings,
        metrics: Metrics,
        notifier: Notifier,
        on_end: Callable[[Job], None] = lambda job: None,  # noqa: ARG005 - no listener
    ) -> None:
        self._pipeline = pipeline
        self._store = store
        self._settings = settings
        self._on_end = on_end
        self._feed = notifier.feed
        self._recovery = Recovery(pipeline.back_ends.targets)
        self._seeds = SeedFiles(store.folder / "cloud-init")
        self._workers = Workers(pipeline, self._recovery, store, metrics, notifier, on_end, self._seeds)
        self._reservations = Reservations()
        self.kept = KeptVolumes(pipeline, self._reservations, notifier.feed, store.trusted_wall)
        # Jobs that are being stored; every limit counts them already.
        self._accepting: set[ActiveJob] = set()
        # Serializes requests with the same idempotency key; a lock is freed with its last user.
        self._keys: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self.draining = False

    # --- life ---

    async def recover(self) -> None:
        """Clean up after an earlier run and queue its unfinished jobs. Call before ``run``."""
        await self._recovery.recover_all()
        for old in await self._store.unfinished():
            job, unproven = await self._after_restart(old)
            if job is not old:
                await self._store.put(job)
                log.info("found an unfinished job", job_id=job.job_id, becomes=job.status, attempts=job.attempts)
            if job.status is Status.PENDING:
                active = ActiveJob.reserving(job, self._reservations)
                active.unproven = unproven
                self._workers.enqueue(active)
            elif job.status.ended:
                self._feed.publish_job(job)
                self._on_end(job)
        await self._recovery.settle_ended(self._seeds, self._store, self.active_ids)

    async def _after_restart(self, job: Job) -> tuple[Job, bool]:
        """Return an unfinished job as it continues or ends, and whether its target must still be asked what it made."""
        now = time.time()
        outcome, unproven = None, False
        try:
            outcome = await self._recovery.outcome_of(job, self._store)
        except OvertakenError as error:
            log.warning("an unfinished job is not run again", job_id=job.job_id, reason=error.message)
            return job.failed(error.message, now), False
        except ProvisionerError as error:
            log.warning(
                "the target could not tell what an unfinished job made; it is asked again later",
                job_id=job.job_id,
                reason=error.message,
            )
            unproven = True
        settings = self._settings
        job = after_restart(job, outcome, settings.on_restart, settings.max_attempts, now, unproven=unproven)
        return job, unproven

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work on jobs until cancelled; jobs running then are rolled back and stay accepted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._prune)
            nursery.start_soon(self.kept.expire)
            await nursery.start(self._workers.run, self._settings.max_concurrent)
            task_status.started()

    async def _prune(self) -> None:
        """Remove jobs that ended longer ago than the configuration keeps them, now and periodically."""
        while True:
            pause = _PRUNE_EVERY
            try:
                if await self._store.prune(self._settings.keep_history, _PRUNE_STEP) == _PRUNE_STEP:
                    pause = _PRUNE_PAUSE
            except UnavailableError as error:
                log.warning("old jobs could not be removed from the history; retrying later", reason=error.message)
            await trio.sleep(pause)

    async def drain(self) -> None:
        """Accept and start no more jobs; wait for the running ones as long as the configuration allows."""
        self.draining = True
        self._pipeline.cache.stop()
        self._workers.stop()
        with trio.move_on_after(self._settings.shutdown_grace):
            for active in self._workers.running():
                await active.ended.wait()
        for active in self._workers.running():
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
        request: Mapping[str, str | int] | None = None,
        cloud_init: CloudInit | None = None,
    ) -> Job:
        """Accept a job; it is on disk when this returns. ``max_jobs``: the most the principal may have active.

        ``request``: the fields of the client's request, for readers of the job, without ``cloud_init``,
        the data whose seal ``spec`` has.

        Raises InvalidRequestError and its subclasses, ConflictError, TooManyRequestsError, UnavailableError.
        """
        spec = self._checked(spec)
        key = f"{principal}\n{idempotency_key}" if idempotency_key else None
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
            request=None if request is None else {name: request[name] for name in request if name != "image_url"},
        )
        if key is None:
            return await self._accept(job, max_jobs, cloud_init)
        async with self._keys.setdefault(key, trio.Lock()):
            earlier = await self._store.by_key(key)
            if earlier is None:
                return await self._accept(job, max_jobs, cloud_init)
        if not same_request(earlier.spec, spec, cloud_init):
            raise ConflictError(f"the Idempotency-Key was used for another request, job {earlier.job_id}")
        return earlier

    async def dry_run(self, spec: JobSpec, principal: str, max_jobs: int | None) -> tuple[Plan, list[ProvisionerError]]:
        """Return what ``submit`` would do, and every reason why it would refuse the job or the job would fail."""
        dry_run = DryRun(self._pipeline, spec)
        target = spec.target or self._pipeline.back_ends.default_target
        for check in (
            self._check_draining,
            lambda: self._reservations.check(target, spec.volume_name or ""),
            lambda: self._reservations.check(target, spec.seed_name or ""),
            self._check_queue,
            lambda: self._check_share(principal, max_jobs),
        ):
            try:
                check()
            except ProvisionerError as error:
                dry_run.refusals.append(error)
        await dry_run.run()
        return dry_run.plan, dry_run.refusals

    async def _accept(self, job: Job, max_jobs: int | None, cloud_init: CloudInit | None) -> Job:
        """Accept the job. Nothing is awaited between the checks, which take the volumes' names, and the store."""
        active = self._admit(job, max_jobs)
        try:
            if cloud_init is not None:
                about = (job.job_id, job.spec.volume_name or "", job.created_at)
                await self._seeds.write(job.job_id, partial(cloud_init.image, *about))
            await self._store.add(job)  # shielded, so that no job is stored but not queued if the client hangs up
        except BaseException:
            active.release()
            if cloud_init is not None:
                self._seeds.discard(job.job_id)
            raise
        finally:
            self._accepting.discard(active)
        self._workers.enqueue(active)
        log.info("job accepted", job_id=job.job_id, volume=job.spec.volume_name, image=str(job.spec.image_url))
        return job

    def _admit(self, job: Job, max_jobs: int | None) -> ActiveJob:
        """Check the limits and reserve the volume's name, in one step without an await."""
        self._check_draining()
        active = ActiveJob.reserving(job, self._reservations)
        try:
            self._check_queue()
            self._check_share(job.principal, max_jobs)
        except ProvisionerError:
            active.release()
            raise
        self._accepting.add(active)
        return active

    def _checked(self, spec: JobSpec) -> JobSpec:
        """Reject invalid requests early; fill in the default target."""
        back_ends = self._pipeline.back_ends
        back_ends.source_for(spec.image_url)
        back_ends.converter(spec.image_format)
        if spec.volume_name is None:
            return spec
        target = back_ends.target(spec.target)
        for name in (spec.volume_name, spec.seed_name):
            if name is not None:
                target.check_name(name)
        return msgspec.structs.replace(spec, target=target.name)

    def _check_draining(self) -> None:
        if self.draining:
            raise UnavailableError("the service is stopping and takes no new jobs")

    def _check_queue(self) -> None:
        waiting = self._workers.waiting + len(self._accepting)
        if waiting >= self._settings.max_queued:
            raise TooManyRequestsError(f"{waiting} jobs are waiting already; try again later")

    def _check_share(self, principal: str | None, max_jobs: int | None) -> None:
        has = sum(active.job.principal == principal for active in (*self._workers.active.values(), *self._accepting))
        if max_jobs is not None and has >= max_jobs:
            raise TooManyRequestsError(f"you have {has} jobs pending or running, your limit; try again later")

    async def find(self, job_id: str) -> tuple[Job, Snapshot | None]:
        """Return the job, and its progress if it has not ended. Raises JobNotFoundError."""
        active = self._workers.active.get(job_id)
        if active is not None:
            return active.job, active.progress.snapshot()
        job = await self._store.get(job_id)
        if job is None:
            raise JobNotFoundError
        return job, None

    def running(self) -> list[tuple[Job, Snapshot]]:
        """Return the running jobs with their progress."""
        return [(active.job, active.progress.snapshot()) for active in self._workers.running()]

    def active(self) -> list[tuple[Job, Snapshot]]:
        """Return the jobs pending or running, in the order of their acceptance, with their progress."""
        return [(active.job, active.progress.snapshot()) for active in self._workers.active.values()]

    def snapshot(self, job_id: str) -> Snapshot | None:
        """Return the progress of an active job."""
        active = self._workers.active.get(job_id)
        return active.progress.snapshot() if active else None

    async def cancel(self, job_id: str) -> Job:
        """Cancel and wait until the job has ended and its end is stored.

        Raises JobNotFoundError, CancelError if it is too late, UnavailableError if the end could not be stored yet.
        """
        active = self._workers.active.get(job_id)
        too_late = active is None or active.stopped.is_set()
        if active is not None:
            await self._workers.cancel(active)
            job = active.job
            if job.status is Status.CANCELLED:
                return job
        job, _ = await self.find(job_id)
        if job.status is Status.FAILED and not too_late:
            raise ProvisionerError(f"the job was stopped, but: {job.error}")
        raise CancelError(f"cannot cancel job in '{job.status}' status")

    async def remove_volume(self, target_name: str, volume_name: str) -> str | None:
        """Remove a volume this service provisioned and its cloud-init seed, while no job for it can be accepted.

        Returns the name of the seed, if there was one. Raises NotFoundError, ConflictError while a job or another
        removal works on one of them, VolumeInUseError.
        """
        target = self._target(target_name)
        with self._reservations.holding(target_name, volume_name, f"the volume {volume_name} is being removed"):
            seed = await remove_with_seed(self._pipeline, self._reservations, target, volume_name)
        for name in (volume_name, seed):
            if name is not None:
                self._feed.publish("volume.removed", VolumeChange(target=target_name, name=name))
        return seed

    async def resize_volume(
        self, target_name: str, volume_name: str, size_bytes: int, *, online: bool
    ) -> tuple[Volume, bool]:
        """Grow a volume this service provisioned, while no job for it can be accepted; see ``resize``.

        Raises NotFoundError, ConflictError, and what ``BlockTarget.resize`` raises.
        """
        target = self._target(target_name)
        with self._reservations.holding(target_name, volume_name, f"the volume {volume_name} is being resized"):
            volume, grown = await resize(self._pipeline, target, volume_name, size_bytes, online=online)
        if grown:
            self._feed.publish("volume.resized", VolumeChange.of(volume))
        return volume, grown

    def _target(self, name: str) -> BlockTarget:
        target = self._pipeline.back_ends.targets.get(name)
        if target is None:
            raise NotFoundError(f"no block target {name!r} is configured")
        return target

    def unstored(self) -> str | None:
        """Return which ends of jobs wait for the store and why, or None. Such jobs still count as active."""
        return self._workers.unstored()

    @property
    def active_count(self) -> int:
        """Return the number of jobs pending or running."""
        return len(self._workers.active)

    @property
    def active_ids(self) -> frozenset[str]:
        """Return the ids of the jobs pending or running."""
        return frozenset(self._workers.active)
