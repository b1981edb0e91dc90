"""Interfaces of guards, which may veto a change of a volume, and of observers, which receive job events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.contracts.types import JobEvent, Volume, VolumeUser


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

    async def aclose(self) -> None:
        """Release the observer's resources. Called once, at shutdown."""
