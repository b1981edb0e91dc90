"""A volume under construction: its names and tags, and the commands that let it replace the old volume."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from lvp_target_lvm import devices, names, tags
from lvp_target_lvm.holders import in_use, inventory_once_closed
from provisioner.contracts import Device, Owner, Replaced, Volume
from provisioner.contracts.errors import (
    ProvisionerError,
    TargetError,
    VolumeExistsError,
    VolumeInUseError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lvp_target_lvm.lvm import Lvm
    from lvp_target_lvm.report import Lv
    from provisioner.contracts import Provenance, StageRequest


class Staging:
    """The names and the progress of one staging.

    ``committed``: the new volume has its final name. ``clean``: nothing is left to finish or undo.
    """

    def __init__(
        self, lvm: Lvm, request: StageRequest, token: str, old: Lv | None, target: str, owner: str, **more_tags: str
    ) -> None:
        self.request = request
        self.token = token
        self.name = names.STAGE + token
        self.path = devices.path_of(lvm.group, self.name)
        self.target = target
        self.old = old
        self.committed = False
        self.clean = False
        self.in_place = False
        # For how long the old volume is kept once it is replaced (0: it is removed), and the space that it takes.
        self.keep_seconds = 0.0
        self.old_bytes = 0
        self.final_path = devices.path_of(lvm.group, request.name)
        self._lvm = lvm
        self._owner = owner
        self._more_tags = more_tags
        self._written_before: int | None = None
        self._writable = False
        self._keep_tags: list[str] = []

    @property
    def replaced(self) -> Replaced | None:
        """Which volume the commit has replaced."""
        if self.old is None:
            return None
        owner = Owner.of(tags.provenance_of(self.old.tags))
        if not self._keep_tags:
            return Replaced(self.request.name, owner)
        kept_until = tags.number(tags.decode(self._keep_tags)["keptuntil"])
        return Replaced(self.request.name, owner, names.KEPT + self.token, kept_until)

    def tag_options(self) -> list[str]:
        """Return the options that tag the staged volume at its creation."""
        return add_tag_options(self._tags(self.request.provenance))

    async def set_aside(self) -> None:
        """Deactivate the old volume and rename it, so that its name is free for the new one.

        Deactivating it ensures that it is closed: the kernel refuses to deactivate an open device, and a missing
        device cannot be opened. Raises VolumeInUseError.
        """
        if self.keep_seconds:
            self._keep_tags = tags.for_keeping(time.time(), self.keep_seconds, self.old_bytes)
        await self._give_up_name("old", names.OLD + self.token)

    async def set_aside_to_overwrite(self) -> int:
        """Rename the old volume to the staged one's name, to overwrite it; return its device number."""
        self.in_place = True
        await self._give_up_name("inplace", self.name)
        await self._lvm.change("lvchange", "-ay", "-K", f"{self._lvm.group}/{self.name}")
        number = await devices.appeared(self.path)
        self._written_before = await devices.sectors_written(self.path)
        self._writable = True
        return number

    async def is_untouched(self) -> bool:
        """Return whether the volume to overwrite is known to be unchanged."""
        if not self._writable:
            return True
        now = await devices.sectors_written(self.path)
        return now is not None and now == self._written_before

    async def retag(self, provenance: Provenance) -> None:
        """Update the staged volume's tags to ``provenance``, if they differ."""
        wanted = self._tags(provenance)
        if self.old is not None and self.in_place:
            there = [*tags.own(self.old.tags), *self._aside_tags("inplace")]
        else:
            there = self._tags(self.request.provenance)
        new = [tag for tag in wanted if tag not in there]
        stale = [tag for tag in there if tag not in wanted]
        if new or stale:
            words = [*add_tag_options(new), *(word for tag in stale for word in ("--deltag", tag))]
            await self._lvm.change("lvchange", *words, f"{self._lvm.group}/{self.name}")
            found = set((await self._staged()).tags)
            if not found.issuperset(wanted) or not found.isdisjoint(stale):
                raise TargetError(f"LVM reported success, but the tags of {self.name} were not updated")

    async def freeze(self) -> None:
        """Make the staged volume a base: read-only, inactive, and skipped by activation."""
        full = f"{self._lvm.group}/{self.name}"
        # Two commands: LVM accepts both changes in one but advises against it.
        await self._lvm.change("lvchange", "-pr", "-ky", full)
        await self._lvm.change("lvchange", "-an", full)
        # Every later volume of this image is cloned from the base, which is found by its tags. So verify all of it.
        now = await self._staged()
        if now.writable or now.active or not set(now.tags).issuperset(self._tags(self.request.provenance)):
            raise TargetError(f"LVM reported success, but {full} did not become a base")

    async def rename(self, number: int) -> None:
        """Rename the staged volume to its final name: the commit point.

        A rename that LVM reports as failed may still have happened. One that succeeded is checked in the kernel.
        """
        try:
            await self._lvm.change("lvrename", self._lvm.group, self.name, self.request.name)
        except ProvisionerError:
            if not await self._is_renamed():
                raise
        await devices.appeared(self.final_path, number)

    async def rename_inactive(self) -> None:
        """Rename an inactive staged volume, which has no device, to its final name."""
        await self._lvm.change("lvrename", self._lvm.group, self.name, self.request.name)
        if not await self._is_renamed():
            raise TargetError(f"LVM reported success, but {self.name} was not renamed")

    async def _is_renamed(self) -> bool:
        volumes = (await self._lvm.inventory()).volumes
        now = volumes.get(self.request.name)
        return self.name not in volumes and now is not None and now.noted.get("token") == self.token

    async def _staged(self) -> Lv:
        """Return the staged volume's current state."""
        found = (await self._lvm.inventory()).volumes.get(self.name)
        if found is None:
            raise TargetError(f"the staged volume {self._lvm.group}/{self.name} no longer exists")
        return found

    def _tags(self, provenance: Provenance) -> list[str]:
        return tags.for_volume(self.request.name, self.token, provenance, owner=self._owner, **self._more_tags)

    def _aside_tags(self, key: str) -> list[str]:
        aside = tags.for_aside(key, self.request.name, self.token, self.request.job_id, self._owner)
        return [*aside, *self._keep_tags]

    async def _give_up_name(self, key: str, new_name: str) -> None:
        old = await self._same_old()
        group, full = self._lvm.group, f"{self._lvm.group}/{old.name}"
        await self._lvm.change("lvchange", *add_tag_options(self._aside_tags(key)), full)
        # Recovery needs these tags to restore the volume, so verify them before changing it.
        if (await self._same_old()).noted.get("by") != self.token:
            raise TargetError(f"LVM reported success, but {full} was not tagged")
        try:
            await self._lvm.change("lvchange", "-an", full)
        except VolumeInUseError as error:
            raise await in_use(f"volume {full} is in use and was not changed", old) from error
        if await devices.is_there(old.major, old.minor, names.mapper_name(group, old.name)):
            raise TargetError(f"LVM reported that {full} was deactivated, but its device still exists")
        await self._lvm.change("lvrename", group, old.name, new_name)

    async def _same_old(self) -> Lv:
        """Return the old volume's current state. Its UUID shows whether another volume has taken its name."""
        inventory = await inventory_once_closed(self._lvm, self.request.name)
        now = inventory.volumes.get(self.request.name)
        if now is None or self.old is None or now.uuid != self.old.uuid:
            raise VolumeExistsError(f"volume {self.request.name} was removed or replaced while the job was running")
        if now.open:
            raise await in_use(f"volume {self._lvm.group}/{now.name} is in use and was not changed", now)
        return now


class Staged:
    """A staged volume: the device to write to, and the commit. ``settle`` cleans up after a failed commit."""

    def __init__(
        self, staging: Staging, device: Device, number: int, settle: Callable[[Staging], Awaitable[None]]
    ) -> None:
        self.device = device
        self.in_place = staging.in_place
        self._staging = staging
        self._number = number
        self._settle = settle

    async def commit(self, image_digest: str | None) -> Volume:
        """Check the size, update the tags, set the old volume aside, rename. See StagedVolume."""
        staging = self._staging
        provenance = replace(staging.request.provenance, image_digest=image_digest)
        try:
            if await devices.size_of(staging.path) < self.device.size_bytes:
                raise TargetError(f"the staged volume {staging.name} has shrunk since it was created")
            await staging.retag(provenance)
            await self._publish()
        except BaseException:
            await self._settle(staging)
            raise
        staging.committed = True
        staging.clean = staging.old is None or staging.in_place
        return Volume(
            staging.request.name, staging.target, staging.final_path, self.device.size_bytes, provenance,
            staging.replaced,
        )  # fmt: skip

    async def _publish(self) -> None:
        if self._staging.old is not None and not self._staging.in_place:
            await self._staging.set_aside()
        await self._staging.rename(self._number)


def add_tag_options(words: list[str]) -> list[str]:
    """Return the options that add these tags."""
    return [word for tag in words for word in ("--addtag", tag)]
