"""Block targets: where volumes stand. Owns the interface and what commit and undo mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from provisioner.contracts.types import Base, Capacity, Device, Finding, Placement, StageRequest, Volume


class StagedVolume(Protocol):
    """A volume under construction, under a name of its own that says which job owns it."""

    @property
    def device(self) -> Device: ...

    async def commit(self, image_digest: str | None) -> Volume:
        """Put the volume under its name, with the digest of what it holds: the one moment of truth.

        Either the new volume stands under the name when this returns, or it raises and the old state holds. The
        check that the old volume is not open and the swap are one: an opener either has the old volume, and this
        raises VolumeInUseError, or it comes after the commit. Not to be interrupted: the caller shields it.
        """


class BlockTarget(ABC):
    """Makes, finds and removes volumes in one place: a volume group, a pool, a folder.

    Methods raise TargetError and its kin. A failed look-up is never reported as 'absent'.
    """

    name: str

    @abstractmethod
    def check_name(self, volume: str) -> None:
        """Raise VolumeNameError where the target cannot have that name. Pure."""

    @abstractmethod
    async def find(self, volume: str) -> Volume | None:
        """The volume of that name, whoever made it, or None. Staged volumes and bases do not count."""

    @abstractmethod
    async def list(self) -> Sequence[Volume]:
        """Every committed volume this service provisioned here."""

    @abstractmethod
    async def capacity(self) -> Capacity:
        """Room for volumes, now. Should be cancellable: it is asked all the time, also while a device hangs."""

    async def check(self) -> None:
        """Raise TargetError if volumes could not be written now, such as on a read-only or full file system.

        Asked every few seconds at most. Should be cancellable, as ``capacity``.
        """

    @abstractmethod
    async def placement(self, request: StageRequest) -> Placement:
        """How ``request`` would be placed, checked against what is there now; changes nothing.

        Raises VolumeExistsError, VolumeInUseError or NoSpaceError where it could not be placed at all.
        """

    @abstractmethod
    def stage(self, request: StageRequest, *, verified: bool) -> AbstractAsyncContextManager[StagedVolume]:
        """Make a staged volume and yield it; leaving without a commit removes it.

        ``verified`` says that the image's digest has been checked; without it a placement that came out as
        IN_PLACE is refused with VolumeExistsError, because nothing could bring the old content back.
        """

    @abstractmethod
    async def remove(self, volume: str) -> None:
        """Remove a volume this service provisioned.

        Raises NotFoundError if it is unknown or not ours, VolumeInUseError if it is open; an opener that comes
        while it is being removed either keeps the volume, and this raises, or finds none.
        """

    @abstractmethod
    async def recover(self, live_jobs: frozenset[str]) -> Sequence[str]:
        """Finish or undo what jobs not in ``live_jobs`` left half done; one sentence for each decision.

        Called at start, before any job runs, and on demand. Calling it twice is the same as once. What another
        installation staged is left alone and reported. From here on until ``aclose`` the target keeps other
        installations off: raises TargetUnavailableError if one is at work.
        """

    async def take_over(self) -> Sequence[str]:
        """Recover what other installations left as well, for when their state directories are lost.

        A target whose staged volumes have no owner just recovers.
        """
        return await self.recover(frozenset())

    async def diagnose(self) -> Sequence[Finding]:
        """Look at this host with the target's eyes and say what stands in its way. Changes nothing."""
        return []

    async def aclose(self) -> None:
        """Give back what the target holds. Called once, at the end."""


class CloneTarget(BlockTarget):
    """A target that can make a volume from a base in constant time."""

    @abstractmethod
    async def base(self, image_digest: str, image_format: str) -> Base | None:
        """The base that holds the image of that digest, read as that format, if there is one."""

    @abstractmethod
    def stage_base(self, request: StageRequest) -> AbstractAsyncContextManager[StagedVolume]:
        """Make a base volume to copy an image onto; its commit publishes it, read-only.

        ``request.provenance.image_digest`` and ``request.name`` (the image format) name it;
        ``request.size_bytes`` is the image's virtual size. Raises NoSpaceError when the pool would pass its
        high-water mark.
        """

    @abstractmethod
    def stage_clone(self, base: Base, request: StageRequest) -> AbstractAsyncContextManager[StagedVolume]:
        """Stage a volume that holds what ``base`` holds, extended to the asked size, zeros after it.

        Raises NoSpaceError where there is no room for one, also where the old volume could be overwritten in place:
        the caller then does that with a copy.
        """
