"""Admits jobs: checks a request and the limits, reserves the volume's name and stores the job before it is queued."""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec
import structlog
import trio

from provisioner.contracts.errors import ConflictError, ProvisionerError, TooManyRequestsError, UnavailableError
from provisioner.jobs.active import ActiveJob
from provisioner.jobs.job import Job
from provisioner.jobs.record import same_request
from provisioner.jobs.states import Status
from provisioner.pipeline.dry_run import DryRun

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.config import JobSettings
    from provisioner.jobs.reservations import Reservations
    from provisioner.jobs.seed_files import SeedFiles
    from provisioner.jobs.store import JobStore
    from provisioner.jobs.workers import Workers
    from provisioner.pipeline.cloud_init import CloudInit
    from provisioner.pipeline.dry_run import Plan
    from provisioner.pipeline.job_run import JobSpec
    from provisioner.pipeline.pipeline import Pipeline

log = structlog.get_logger(__name__)


class Admission:
    """The way of a request into the queue. Set ``draining`` to admit no more."""

    def __init__(
        self,
        pipeline: Pipeline,
        store: JobStore,
        settings: JobSettings,
        workers: Workers,
        reservations: Reservations,
        seeds: SeedFiles,
    ) -> None:
        self._pipeline, self._store, self._settings = pipeline, store, settings
        self._workers, self._reservations, self._seeds = workers, reservations, seeds
        # Jobs that are being stored; every limit counts them already.
        self._accepting: set[ActiveJob] = set()
        # Serializes requests with the same idempotency key; a lock is freed with its last user.
        self._keys: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self.draining = False

    async def submit(
        self,
        spec: JobSpec,
        *,
        request_id: str,
        principal: str | None,
        idempotency_key: str | None,
        job_id: str | None = None,
        max_jobs: int | None = None,
        request: Mapping[str, str | int] | None = None,
        cloud_init: CloudInit | None = None,
        traceparent: str | None = None,
    ) -> Job:
        """Accept a job; it is on disk when this returns.

        - ``job_id``: the new job's id; an earlier job of the same idempotency key has another.
        - ``max_jobs``: how many active jobs the principal may have.
        - ``request``: the fields of the client's request as readers of the job see them, without ``cloud_init``.
        - ``cloud_init``: the seed's content, of which ``spec`` has only a digest.
        - ``traceparent``: the trace that the job belongs to, for observers.

        Raises InvalidRequestError and its subclasses, ConflictError, TooManyRequestsError, UnavailableError.
        """
        spec = self._checked(spec)
        key = f"{principal}\n{idempotency_key}" if idempotency_key else None
        now = time.time()
        job = Job(
            job_id=job_id or str(uuid.uuid4()),
            spec=spec,
            status=Status.PENDING,
            created_at=now,
            updated_at=now,
            request_id=request_id,
            principal=principal,
            idempotency_key=key,
            request=None if request is None else {name: request[name] for name in request if name != "image_url"},
            traceparent=traceparent,
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
