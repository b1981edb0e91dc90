"""Guards and observers: who may veto touching a volume, and who hears of jobs. Owns the interfaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.contracts.types import JobEvent, Volume, VolumeUser


class Guard(ABC):
    """Knows of users of a volume that the kernel's open count does not show."""

    @abstractmethod
    async def users(self, volume: Volume) -> Sequence[VolumeUser]:
        """Who uses ``volume``; any user means it is not touched.

        A guard that cannot tell raises TargetUnavailableError, and the volume is not touched either.
        """

    async def aclose(self) -> None:
        """Give back what the guard holds. Called once, at the end."""


class Observer(ABC):
    """Hears of every change of every job. It cannot hold one up: an observer's error is logged and forgotten."""

    @abstractmethod
    async def job_changed(self, event: JobEvent) -> None:
        """A job was accepted, went on to another stage, or ended."""

    async def aclose(self) -> None:
        """Give back what the observer holds. Called once, at the end."""
