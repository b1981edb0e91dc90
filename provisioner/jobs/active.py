"""A job that has not ended, with its progress and its cancel scope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import ConflictError
from provisioner.pipeline.progress import Progress

if TYPE_CHECKING:
    from provisioner.jobs.job import Job
    from provisioner.jobs.reservations import Reservation, Reservations


@dataclass(slots=True, eq=False)
class ActiveJob:
    """``job`` is what clients see. Its end appears there only once it is stored.

    ``stopped`` is set when the job no longer runs, ``ended`` when its end is stored. ``unproven``: the job was found
    after a restart, and its target could not say whether it had made its volume already. ``unsettled``: its cloud-init
    seed may have to be rolled back at the next start.
    """

    job: Job
    reservations: list[Reservation] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    stopped: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    cancel_requested: bool = False
    interrupted: bool = False
    unproven: bool = False
    unsettled: bool = False
    started_at: float | None = None

    @classmethod
    def reserving(cls, job: Job, reservations: Reservations) -> ActiveJob:
        """Return the job with the names of its volume and its seed reserved. Raises ConflictError if one is taken."""
        active = cls(job)
        try:
            for name in (job.spec.volume_name, job.spec.seed_name):
                if name is not None:
                    active.reservations.append(reservations.reserve(job.spec.target or "", name, active.describe))
        except ConflictError:
            active.release()
            raise
        return active

    def describe(self) -> str:
        """Return the message for a request that wants the same volume."""
        return f"job {self.job.job_id} for the volume {self.job.spec.volume_name} is still {self.job.status}"

    def release(self) -> None:
        """Release the reserved names."""
        for reservation in self.reservations:
            reservation.release()
