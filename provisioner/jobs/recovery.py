"""What an earlier life left: debris on the targets, and jobs that were found running. Owns no job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from provisioner.contracts import CloneTarget, ProvisionedBy
from provisioner.contracts.errors import ProvisionerError
from provisioner.jobs.states import Status
from provisioner.pipeline.plan import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.contracts import BlockTarget
    from provisioner.jobs.job import Job

log = structlog.get_logger(__name__)


class Recovery:
    """The targets, and which of them are still to be looked through."""

    def __init__(self, targets: Mapping[str, BlockTarget]) -> None:
        self._targets = targets
        self._due = set(targets)

    async def everywhere(self) -> None:
        """Recover every target. One that cannot be stays due: the others can work."""
        for name in sorted(self._due):
            try:
                await self.of(name, frozenset())
            except ProvisionerError as error:
                log.error("a target could not be recovered", target=name, reason=error.message)

    async def of(self, target: str | None, running: frozenset[str]) -> None:
        """Recover a target that is still due, leaving alone what belongs to the jobs ``running``."""
        if target not in self._due:
            return
        for decision in await self._targets[target].recover(running):
            log.info("recovered", target=target, decision=decision)
        self._due.discard(target)

    async def outcome_of(self, job: Job) -> Outcome | None:
        """What a job found running made, where it was committed in the moment before the end."""
        target = self._targets.get(job.spec.target or "")
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
