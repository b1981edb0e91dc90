"""Interfaces of guards, which may veto a change of a volume, and of observers, which receive changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.contracts.types import ChangeEvent, JobEvent, Volume, VolumeUser


class Guard(ABC):
    """Finds users of a volume that the kernel's open count does not show."""

    @abstractmethod
    async def users(self, volume: Volume) -> Sequence[VolumeUser]:
        """Return the users of ``volume``. If there is any, the volume is left unchanged.

        Raises TargetUnavailableError if the users cannot be determined; the volume is left unchanged then too.
        """

    async def aclose(self) -> None:
        """Release the guard's resources. Called once, at shutdown."""


class Observer(ABC):
    """Receives every change of every job. It cannot block a job: an observer's error is logged and ignored."""

    @abstractmethod
    async def job_changed(self, event: JobEvent) -> None:
        """Handle a job that was accepted, entered another stage, or ended."""

    async def changed(self, event: ChangeEvent) -> None:
        """Handle a change of a job's status, a volume or a cached image. Not called for stages of a job."""

    async def run(self, ended: Sequence[ChangeEvent]) -> None:
        """Do the observer's own work while the service runs, until cancelled.

        ``ended``: the ends of the newest jobs at the start. An observer that must not miss one records what it has
        handled, and compares: the service may have been killed between a job's end and ``changed``.
        """

    async def aclose(self) -> None:
        """Release the observer's resources. Called once, at shutdown."""
