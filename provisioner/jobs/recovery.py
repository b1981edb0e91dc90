"""Recovery after a restart: leftovers on the targets and unfinished jobs. Owns no job.

A job runs again only if no job for the same volume was accepted later, and no later job made the volume that has its
name now.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts import CloneTarget, ProvisionedBy, Signer, StageRequest
from provisioner.contracts.errors import ConflictError, ProvisionerError
from provisioner.contracts.reasons import JOB_OVERTAKEN
from provisioner.jobs.states import Status
from provisioner.pipeline.job_run import Outcome
from provisioner.pipeline.replaced import replaced_by
from provisioner.pipeline.seed import settle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.contracts import BlockTarget
    from provisioner.contracts.types import Provenance, Volume
    from provisioner.jobs.job import Job
    from provisioner.jobs.seed_files import SeedFiles
    from provisioner.jobs.store import JobStore

log = structlog.get_logger(__name__)


class Recovery:
    """The targets, and which of them still need recovery (``_due``)."""

    def __init__(self, targets: Mapping[str, BlockTarget]) -> None:
        self._targets = targets
        self._due = set(targets)

    async def recover_all(self) -> None:
        """Recover every target. A target that fails stays due, so the others can work."""
        for name in sorted(self._due):
            try:
                await self.recover_target(name, frozenset())
            except ProvisionerError as error:
                log.error("a target could not be recovered", target=name, reason=error.message)

    async def recover_target(self, target: str | None, running: frozenset[str]) -> None:
        """Recover a target that is still due, without touching what belongs to the jobs ``running``."""
        if target not in self._due:
            return
        for decision in await self._targets[target].recover(running):
            log.info("recovered", target=target, decision=decision)
        self._due.discard(target)

    async def settle_seed(self, job: Job, *, latest: bool) -> None:
        """Finish or roll back the seed of a job that does not run, see ``settle``. Raises ProvisionerError."""
        target = self._targets.get(job.spec.target or "")
        if target is not None and job.spec.seed_name is not None and job.spec.volume_name is not None:
            await settle(target, job.job_id, job.spec.volume_name, latest=latest)

    async def settle_ended(self, seeds: SeedFiles, store: JobStore, unfinished: frozenset[str]) -> None:
        """Settle the seeds of jobs whose end left that undone, and remove the cloud-init data of all ended jobs."""
        for job_id in await seeds.jobs():
            if job_id in unfinished:
                continue
            job = await store.get(job_id)
            try:
                if job is not None:
                    await self.settle_seed(job, latest=False)
            except ProvisionerError as error:
                log.warning("a cloud-init seed could not be settled; the next start retries it", job_id=job_id,
                            reason=error.message)  # fmt: skip
            else:
                await seeds.remove(job_id)

    async def outcome_of(self, job: Job, store: JobStore) -> Outcome | None:
        """Return what the job made before the restart, or None if it may run.

        Raises OvertakenError if it must not run any more, and ProvisionerError if its target does not answer.
        """
        if job.spec.volume_name is None:
            return None
        newer = await store.newer(job)
        target = self._targets.get(job.spec.target or "")
        if job.status is Status.RUNNING:
            await self.settle_seed(job, latest=newer is None)
        volume = await target.find(job.spec.volume_name) if target is not None else None
        origin = volume.provenance if volume is not None else None
        if volume is not None and origin is not None and origin.job_id == job.job_id and job.status is Status.RUNNING:
            assert target is not None
            volume = replace(volume, replaced=await replaced_by(target, job.job_id))
            by = await _provisioned_by(target, volume, origin)
            seed = await target.find(job.spec.seed_name) if job.spec.seed_name is not None else None
            return Outcome(None, None, volume, by, signed_by=Signer.of_tag(origin.signed_by), seed=seed)
        if newer is None and origin is not None and await _is_newer(origin, job, store):
            newer = origin.job_id
        if newer is not None:
            raise OvertakenError(job.spec.volume_name, newer)
        return None


async def _provisioned_by(target: BlockTarget, volume: Volume, origin: Provenance) -> ProvisionedBy:
    request = StageRequest(volume.name, 0, origin)
    clones = isinstance(target, CloneTarget) and await target.why_copy(request) is None
    return ProvisionedBy.CLONE if clones else ProvisionedBy.COPY


class OvertakenError(ConflictError):
    """A later job for the same volume was accepted; running this one would overwrite the later one's result."""

    reason = JOB_OVERTAKEN

    def __init__(self, volume_name: str, newer: str) -> None:
        super().__init__(f"job {newer} for the volume {volume_name} was accepted later; this one was not run again")


async def _is_newer(origin: Provenance, job: Job, store: JobStore) -> bool:
    """Return whether the job that made a volume was accepted after ``job``: by the store's order, else by time."""
    made, own = await store.order(origin.job_id), await store.order(job.job_id)
    if made is None or own is None:
        return origin.job_id != job.job_id and origin.created_at > job.created_at
    return made > own
