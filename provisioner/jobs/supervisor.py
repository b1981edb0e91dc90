"""The jobs of this host: recovers, finds and cancels them, removes and resizes volumes.

``admission`` accepts jobs, ``workers`` does the work. An accepted job is on disk before ``submit`` returns. A cancel
returns when the job is rolled back and its end stored.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts.errors import (
    CancelError,
    JobNotFoundError,
    NotFoundError,
    ProvisionerError,
    UnavailableError,
)
from provisioner.jobs.active import ActiveJob
from provisioner.jobs.admission import Admission
from provisioner.jobs.feed import VolumeChange
from provisioner.jobs.job import Job, after_restart
from provisioner.jobs.kept import KeptVolumes
from provisioner.jobs.recovery import OvertakenError, Recovery
from provisioner.jobs.removal import remove_with_seed
from provisioner.jobs.reservations import Reservations
from provisioner.jobs.resize import resize
from provisioner.jobs.seed_files import SeedFiles
from provisioner.jobs.states import Status
from provisioner.jobs.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.config import JobSettings
    from provisioner.contracts import BlockTarget, Volume
    from provisioner.jobs.notify import Notifier
    from provisioner.jobs.store import JobStore
    from provisioner.observe.metrics import Metrics
    from provisioner.pipeline.pipeline import Pipeline
    from provisioner.pipeline.progress import Snapshot

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
        self._admission = Admission(pipeline, store, settings, self._workers, self._reservations, self._seeds)
        self.submit, self.dry_run = self._admission.submit, self._admission.dry_run

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
            return job.failed(error.message, error.reason, now), False
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
        self._admission.draining = True
        self._pipeline.cache.stop()
        self._workers.stop()
        with trio.move_on_after(self._settings.shutdown_grace):
            for active in self._workers.running():
                await active.ended.wait()
        for active in self._workers.running():
            active.interrupted = True

    # --- for the API ---

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
    def draining(self) -> bool:
        """Return whether no more jobs are accepted."""
        return self._admission.draining

    @property
    def active_count(self) -> int:
        """Return the number of jobs pending or running."""
        return len(self._workers.active)

    @property
    def active_ids(self) -> frozenset[str]:
        """Return the ids of the jobs pending or running."""
        return frozenset(self._workers.active)
