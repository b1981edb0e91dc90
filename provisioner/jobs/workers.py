"""Active jobs: queued, running and ending. ``pipeline`` does the work of a job.

A job's error stays inside its worker. A job has ended when its rollback is done and its end is on disk.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from provisioner.contracts import ImageUrl, JobEvent
from provisioner.contracts.errors import ProvisionerError, RollbackError, UnavailableError
from provisioner.contracts.tasks import first_cause
from provisioner.jobs.ended_jobs import PAUSES, EndedJobs
from provisioner.jobs.job import conclude
from provisioner.jobs.queue import PriorityQueue
from provisioner.jobs.states import Status
from provisioner.pipeline.job_run import JobRun
from provisioner.pipeline.progress import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.jobs.active import ActiveJob
    from provisioner.jobs.job import Job
    from provisioner.jobs.notify import Notifier
    from provisioner.jobs.recovery import Recovery
    from provisioner.jobs.seed_files import SeedFiles
    from provisioner.jobs.store import JobStore
    from provisioner.observe.metrics import Metrics
    from provisioner.pipeline.pipeline import Pipeline

log = structlog.get_logger(__name__)


# Seconds that a cancel waits for the store once the job has stopped.
_STORE_TIMEOUT = 10.0
# Seconds a cancel waits for the job to stop and roll back. Longer than the longest step of a roll-back on a busy disk.
_STOP_TIMEOUT = 120.0


class Workers:
    """A pool of workers and the queue they serve."""

    def __init__(
        self,
        pipeline: Pipeline,
        recovery: Recovery,
        store: JobStore,
        metrics: Metrics,
        notifier: Notifier,
        on_end: Callable[[Job], None],
        seeds: SeedFiles,
    ) -> None:
        self._pipeline = pipeline
        self._recovery = recovery
        self._store = store
        self._metrics = metrics
        self._notifier = notifier
        self._on_end = on_end
        self._seeds = seeds
        self._queue: PriorityQueue[ActiveJob] = PriorityQueue()
        self._ends = EndedJobs(store, self._ended)
        self.active: dict[str, ActiveJob] = {}
        """Every job that has not ended, by its id."""

    @property
    def waiting(self) -> int:
        """Return the number of jobs in the queue."""
        return len(self._queue)

    def running(self) -> list[ActiveJob]:
        """Return the jobs that a worker runs."""
        return [active for active in self.active.values() if active.job.status is Status.RUNNING]

    def unstored(self) -> str | None:
        """Return which ends of jobs wait for the store and why, or None."""
        return self._ends.unstored()

    def enqueue(self, active: ActiveJob) -> None:
        """Queue a pending job that is already on disk."""
        self.active[active.job.job_id] = active
        active.progress.on_stage = lambda stage: self._notify(active, stage)
        self._queue.put(active, active.job.spec.priority)
        self._count()
        self._notify(active, Stage.QUEUED)
        self._publish(active)

    def stop(self) -> None:
        """Start no more jobs from the queue."""
        self._queue.stop()

    async def cancel(self, active: ActiveJob) -> None:
        """Remove the job from the queue, or stop it, and wait until it has ended.

        Raises UnavailableError if it has not stopped in time, or that could not be stored: both still happen.
        """
        if active.job.status is Status.PENDING and not active.cancel_requested:
            active.cancel_requested = True
            self._queue.discard(active)
            await self._ends.store(active, active.job.cancelled(time.time()))
        active.cancel_requested = True
        active.scope.cancel(reason="requested by a client")
        with trio.move_on_after(_STOP_TIMEOUT):
            await active.stopped.wait()
        if not active.stopped.is_set():
            raise UnavailableError(
                f"the job is being cancelled, but has not stopped within {_STOP_TIMEOUT:g} s: a disk or a program does "
                "not answer"
            )
        with trio.move_on_after(_STORE_TIMEOUT):
            await active.ended.wait()
        if not active.ended.is_set():
            raise UnavailableError(f"the job has stopped, but {self._ends.unstored() or 'its end is not stored yet'}")

    async def run(self, count: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work on ``count`` jobs at once until cancelled; those running then are rolled back and stay accepted."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ends.retry)
                nursery.start_soon(self._seeds.run)
                for _ in range(count):
                    nursery.start_soon(self._worker)
                task_status.started()
        finally:
            await self._ends.last_try()

    async def _worker(self) -> None:
        while True:
            active = await self._queue.get()
            job = active.job
            with structlog.contextvars.bound_contextvars(
                job_id=job.job_id, request_id=job.request_id, correlation_id=job.spec.correlation_id
            ):
                await self._work_on(active)

    async def _work_on(self, active: ActiveJob) -> None:
        active.started_at = time.monotonic()
        run = self._run_of(active)
        error: BaseException | None = None
        active.job = active.job.started(time.time())
        self._metrics.jobs.labels("started").inc()
        self._count()
        self._publish(active)
        try:
            with active.scope:
                await self._store_start(active)
                await self._run_pipeline(active, run)
        except* Exception as group:  # noqa: BLE001 - the boundary: a job's error must not reach another job
            error = first_cause(group)
            active.unsettled = isinstance(error, RollbackError)
        finally:
            # The job's own scope has exited, so a cancel still in effect here comes from the shutdown.
            active.interrupted |= trio.current_effective_deadline() == -math.inf
            await self._ends.store(active, self._conclude(active, run, error))

    def _run_of(self, active: ActiveJob) -> JobRun:
        job, pinned = active.job, active.job.pinned_url

        async def on_pin() -> None:
            """Store what the image's url stands for, so that the job uses the same image if it runs again."""
            active.job = msgspec.structs.replace(active.job, pinned_url=run.pinned_url and run.pinned_url.text)
            log.info("the image is pinned", url=str(run.pinned_url))
            try:
                await self._store.put(active.job)
            except UnavailableError as error:  # stored with the job's end; only a restart before that looks again
                log.warning("the pinned url could not be stored", reason=error.message)

        run = JobRun(job.job_id, job.created_at, job.spec, active.progress)
        run.seed_image = self._seeds.path(run.job_id) if run.spec.seed_name else None
        run.pinned_url, run.on_pin = None if pinned is None else ImageUrl.parse(pinned), on_pin
        return run

    async def _store_start(self, active: ActiveJob) -> None:
        """Store that the job runs, before it does anything; wait for the store as long as it takes."""
        tries = 0
        while True:
            try:
                await self._store.put(active.job)
            except UnavailableError as error:
                if not tries:
                    log.warning("the job waits until its start can be stored", reason=error.message)
            else:
                log.info("job started", attempt=active.job.attempts)
                return
            await trio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1

    async def _run_pipeline(self, active: ActiveJob, run: JobRun) -> None:
        running = frozenset(other.job.job_id for other in self.running())
        await self._recovery.recover_target(active.job.spec.target, running)
        if active.unproven:
            run.outcome = await self._recovery.outcome_of(active.job, self._store)
            if run.outcome is not None:
                return
        await self._pipeline.run(run)

    def _conclude(self, active: ActiveJob, run: JobRun, error: BaseException | None) -> Job:
        """Return the job as it ended."""
        if error is not None and not isinstance(error, ProvisionerError):
            log.error("unexpected error in a job", exc_info=error)
        job = conclude(
            active.job,
            run.outcome,
            error,
            cancel_requested=active.cancel_requested,
            interrupted=active.interrupted,
            staged=run.progress.has_begun(Stage.ALLOCATING),
            timings=run.progress.timings(),
            now=time.time(),
        )
        if job.status.ended and job.cache_hit is None:
            job = msgspec.structs.replace(job, cache_hit=run.progress.cache_hit)
        if job.status.ended and run.warning is not None:
            job = msgspec.structs.replace(job, warnings=(run.warning,))
        return job

    def _ended(self, active: ActiveJob, job: Job) -> None:
        """Publish an end that is on disk."""
        active.job = job
        self._notify(active, active.progress.stage)
        self._publish(active)
        del self.active[job.job_id]
        active.release()
        active.ended.set()
        self._count()
        if active.started_at is not None:
            seconds = time.monotonic() - active.started_at
            log.info("job ended", job_id=job.job_id, status=job.status, error=job.error, seconds=round(seconds, 3))
            if job.status.ended:
                self._count_end(job, seconds, active.progress.processed(Stage.CONVERTING))
        if job.status.ended:
            if job.spec.seed_name is not None and not active.unsettled:
                self._seeds.discard(job.job_id)
            try:
                self._on_end(job)
            except Exception as error:
                log.error("a listener failed at the end of a job", job_id=job.job_id, exc_info=error)

    def _count_end(self, job: Job, seconds: float, written: int) -> None:
        self._metrics.job_ended(
            job.status.value,
            seconds,
            written=written,
            cache_hit=job.cache_hit,
            provisioned_by=job.volume.provisioned_by.value if job.volume else None,
            stages=job.timings if job.status is Status.COMPLETED else None,
        )

    def _count(self) -> None:
        self._metrics.active_jobs.set(len(self.active))
        self._metrics.queue_depth.set(len(self._queue))

    def _publish(self, active: ActiveJob) -> None:
        """Tell the readers of the feed the job's new status."""
        snapshot = None if active.job.status.ended else active.progress.snapshot()
        self._notifier.feed.publish_job(active.job, snapshot)

    def _notify(self, active: ActiveJob, stage: Stage) -> None:
        job, snapshot = active.job, active.progress.snapshot()
        self._notifier.notify(
            JobEvent(
                job_id=job.job_id,
                status=job.status.value,
                stage=stage.value,
                percent=100.0 if job.status is Status.COMPLETED else snapshot.percent,
                volume_name=job.spec.volume_name,
                image_url=job.spec.image_url.text,
                correlation_id=job.spec.correlation_id,
                error=job.error,
                at=time.time(),
                accepted_at=job.created_at,
                stages=active.progress.intervals() if job.status.ended else None,
                traceparent=job.traceparent,
            )
        )
