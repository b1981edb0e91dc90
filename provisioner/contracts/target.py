"""Interface of block targets, which store volumes, and the semantics of commit and rollback."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

from provisioner.contracts.errors import ResizeError
from provisioner.contracts.types import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from provisioner.contracts.types import (
        Base,
        Capacity,
        Device,
        Finding,
        KeptVolume,
        Placement,
        Provenance,
        StageRequest,
        Volume,
    )


def check_growth(volume: Volume, size_bytes: int) -> None:
    """Raise ResizeError if the volume is larger than ``size_bytes``. Pure."""
    if volume.size_bytes > size_bytes:
        raise ResizeError(
            f"volume {volume.name} has {volume.size_bytes / GIB:g} GiB and is never shrunk; request a larger size"
        )


class StagedVolume(Protocol):
    """A volume under construction, with a temporary name that contains the id of its job."""

    @property
    def device(self) -> Device: ...

    async def commit(self, image_digest: str | None) -> Volume:
        """Publish the volume under its final name, together with the digest of its content.

        Atomic: either the new volume has the name when this returns, or this raises and the old state is unchanged.
        The check that the old volume is not open and the swap are one step: if a process has the old volume open, this
        raises VolumeInUseError; a process that opens it later gets the new one. The caller shields it from cancels.

        If a volume was replaced, ``Volume.replaced`` says which. A KeepingTarget keeps it as its settings say.
        """


class BlockTarget(ABC):
    """Creates, finds and removes volumes in one place: a volume group, a pool, a folder.

    Methods raise TargetError or a subclass. A failed look-up is never reported as a missing volume.
    """

    name: str

    @abstractmethod
    def check_name(self, volume: str) -> None:
        """Raise VolumeNameError if the name is invalid on this target. Pure."""

    @abstractmethod
    async def find(self, volume: str) -> Volume | None:
        """Return the volume of that name, also a foreign one, or None. Ignores staged volumes and bases."""

    @abstractmethod
    async def list(self) -> Sequence[Volume]:
        """Return every committed volume that this service provisioned here."""

    @abstractmethod
    async def capacity(self) -> Capacity:
        """Return the current space. Should be cancellable: it is polled, even while a device hangs."""

    async def check(self) -> None:
        """Raise TargetError if volumes cannot be written now, for example on a read-only or full file system.

        Called every few seconds at most. Should be cancellable, like ``capacity``.
        """

    @abstractmethod
    async def placement(self, request: StageRequest) -> Placement:
        """Return how ``request`` would be placed in the current state. Changes nothing.

        Raises VolumeExistsError, VolumeInUseError or NoSpaceError if it cannot be placed.
        """

    @abstractmethod
    def stage(self, request: StageRequest, *, verified: bool) -> AbstractAsyncContextManager[StagedVolume]:
        """Create a staged volume and yield it; leaving the context without a commit removes it.

        ``verified`` says that the image's digest was checked. Without it, a placement IN_PLACE is rejected with
        VolumeExistsError, because the old content could not be restored.
        """

    @abstractmethod
    async def remove(self, volume: str) -> None:
        """Remove a volume that this service provisioned.

        Raises NotFoundError if it does not exist or is foreign, VolumeInUseError if it is open. If a process opens it
        during the removal, either this raises and the volume stays, or the open fails.
        """

    async def resize(self, volume: str, size_bytes: int, *, online: bool = False) -> Volume:  # noqa: ARG002
        """Grow a volume that this service provisioned and return it; its current size changes nothing.

        ``size_bytes`` is rounded up as for a new volume. The new part reads as zeros before the new size is visible.
        ``online`` permits to grow an open volume; a target that cannot do so raises VolumeInUseError as without it.
        If this raises or is cancelled, or the process is killed, the volume keeps its old size and content, unless the
        change was complete; ``recover`` removes what is left.

        Raises NotFoundError if the volume does not exist or is foreign, ResizeError if it is larger than requested,
        VolumeInUseError if it is open, NoSpaceError. A target that does not override this cannot resize.
        """
        raise ResizeError(f"target {self.name} cannot resize volumes")

    @abstractmethod
    async def recover(self, live_jobs: frozenset[str]) -> Sequence[str]:
        """Finish or roll back what jobs not in ``live_jobs`` left behind; return one sentence for each action.

        Called at start, before any job runs, and on demand. Idempotent. Volumes staged by another installation are
        left alone and reported. Until ``aclose`` the target then keeps other installations off: raises
        TargetUnavailableError if another one is active.
        """

    async def take_over(self) -> Sequence[str]:
        """Recover what other installations left behind too, for use after their state directories are lost.

        A target whose staged volumes have no owner runs a plain recovery.
        """
        return await self.recover(frozenset())

    async def diagnose(self) -> Sequence[Finding]:
        """Return the findings of ``lvp doctor`` about this target on this host. Changes nothing."""
        return []

    async def aclose(self) -> None:
        """Release the target's resources. Called once, at shutdown."""


class KeepingTarget(BlockTarget):
    """A target that keeps replaced volumes aside, so that they can be restored. Settings: ``KeepingSettings``.

    A commit renames the replaced volume within the target, and marks it on the storage itself with its old name, the
    job, and the time until which it is kept, so that kept volumes outlive restarts and the loss of the state directory.
    The swap stays atomic: after a crash at any point, ``recover`` either restores the old volume or finishes the
    commit, and then the old volume is kept. Kept volumes are not found by ``find`` and ``list``.
    """

    @abstractmethod
    def keep_time(self, volume: Volume) -> float:
        """Return for how many seconds ``volume`` would be kept if it were replaced now; 0: it would be removed.

        Pure.
        """

    @abstractmethod
    async def kept(self) -> Sequence[KeptVolume]:
        """Return every kept volume, whichever installation kept it."""

    @abstractmethod
    async def remove_kept(self, kept_as: str) -> None:
        """Remove a kept volume. Raises NotFoundError if there is none of that name, VolumeInUseError if it is open."""

    @abstractmethod
    async def restore(self, kept_as: str, job_id: str) -> Volume:
        """Give a kept volume its old name again, content and provenance unchanged; atomic, like a commit.

        A volume that has the name now is kept in its turn, for at least ``RESTORE_KEEP`` seconds, as replaced by
        ``job_id``. Raises NotFoundError, VolumeInUseError if that volume is open, VolumeExistsError if it cannot be
        replaced.
        """

    @abstractmethod
    async def adopt(self, volume: str, provenance: Provenance) -> Volume:
        """Mark a foreign volume as created by this service, without changing its content; it may be open.

        Raises NotFoundError if it does not exist, VolumeExistsError if it is ours already or of a kind that the target
        does not make.
        """


class CloneTarget(BlockTarget):
    """A target that creates a volume from a base in constant time."""

    async def why_copy(self, request: StageRequest, base_bytes: int = 0) -> str | None:  # noqa: ARG002
        """Return why the volume must be copied, if it cannot be cloned now; None if it can. Changes nothing.

        The reason is a sentence without a full stop. ``request.provenance.image_digest`` may be None;
        ``base_bytes`` estimates what a base takes that is still to be made.
        """
        return None

    async def shares_blocks(self, fd: int) -> bool:  # noqa: ARG002
        """Return whether a base can share the blocks of the open file ``fd``, so that a raw image takes no space.

        The caller then waits for the complete image before it converts it onto a base.
        """
        return False

    @abstractmethod
    async def base(self, image_digest: str, image_format: str) -> Base | None:
        """Return the base for the image of that digest, interpreted as that format, or None."""

    @abstractmethod
    def stage_base(self, request: StageRequest) -> AbstractAsyncContextManager[StagedVolume]:
        """Create a base volume to copy an image onto; its commit publishes it read-only.

        ``request.provenance.image_digest`` and ``request.name`` (the image format) identify it;
        ``request.size_bytes`` is the image's virtual size. Raises NoSpaceError if the pool would exceed its high-water
        mark.

        On a target that several hosts share, one host copies an image: this may wait for another one that does, and
        raises BaseExistsError when the base is there, as does the commit if another host was faster.
        """

    @abstractmethod
    def stage_clone(self, base: Base, request: StageRequest) -> AbstractAsyncContextManager[StagedVolume]:
        """Stage a clone of ``base``, extended with zeros to the requested size.

        Raises NoSpaceError if a clone does not fit, even if the old volume could be overwritten in place, and
        BaseGoneError if the base was removed in the meantime: the caller then falls back to a copy.
        """
