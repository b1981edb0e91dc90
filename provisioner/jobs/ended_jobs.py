"""Stores the ends of jobs. An end that cannot be stored is kept and retried, and not reported until then.

Until its end is stored a job counts as active: it is shown as it was, and its volume's name stays reserved. So no
newer job for the volume is accepted before, and a restart that finds the job unfinished on disk may run it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts.cancel_shield import shielded
from provisioner.contracts.errors import ProvisionerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.jobs.active import ActiveJob
    from provisioner.jobs.job import Job
    from provisioner.jobs.store import JobStore

log = structlog.get_logger(__name__)

# Seconds for one try: longer than SQLite waits for a lock, shorter than systemd waits for the service to stop.
_TRY = 10.0
# Pauses between tries, in seconds; the last one repeats. A disk that has space again is noticed soon.
PAUSES = (0.5, 1.0, 2.0, 5.0)


class EndedJobs:
    """The ends that are not stored yet. ``on_stored`` is called with each one once it is on disk."""

    def __init__(self, store: JobStore, on_stored: Callable[[ActiveJob, Job], None]) -> None:
        self._store = store
        self._on_stored = on_stored
        self._kept: dict[str, tuple[ActiveJob, Job]] = {}
        self._failed = trio.Event()
        self._reason = ""

    def unstored(self) -> str | None:
        """Return which ends wait for the store and why, or None."""
        if not self._kept or not self._reason:
            return None
        which = f"{len(self._kept)} jobs" if len(self._kept) > 1 else f"job {next(iter(self._kept))}"
        return f"the end of {which} could not be stored yet: {self._reason}"

    async def store(self, active: ActiveJob, job: Job) -> None:
        """Store that ``active`` ended as ``job``, even if the task is cancelled; leave failures to ``retry``."""
        self._kept[job.job_id] = (active, job)
        active.stopped.set()
        await self._try(active, job)

    async def retry(self) -> None:
        """Retry ends that could not be stored, until cancelled."""
        while True:
            await self._failed.wait()
            self._failed = trio.Event()
            tries = 0
            while self._kept:
                await trio.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
                tries += 1
                await self._try_all()

    async def last_try(self) -> None:
        """Try once more when the service stops, and log the ends that are still not stored."""
        await self._try_all()
        for active, job in self._kept.values():
            log.error(
                "the end of a job could not be stored; the next start finds it as it was before",
                job_id=active.job.job_id, status=active.job.status, end=job.status, reason=self._reason,
            )  # fmt: skip

    async def _try_all(self) -> None:
        for active, job in tuple(self._kept.values()):
            if not await self._try(active, job):
                return

    async def _try(self, active: ActiveJob, job: Job) -> bool:
        try:
            with shielded(f"store the end of job {job.job_id}", _TRY):
                await self._store.put(job)
        except Exception as error:
            if not isinstance(error, ProvisionerError):
                log.error("unexpected error of the job store", exc_info=error)
            reason = error.message if isinstance(error, ProvisionerError) else type(error).__name__
            if reason != self._reason:
                log.error("the end of a job could not be stored; it is retried", job_id=job.job_id, reason=reason)
            self._reason = reason
            self._failed.set()
            return False
        self._reason = ""
        if self._kept.pop(job.job_id, None) is not None:
            self._on_stored(active, job)
        return True
