"""The target ``lvm``: plain volumes. Their extents still hold what their last owner wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lvp_target_lvm import devices
from lvp_target_lvm.group import GroupTarget
from lvp_target_lvm.placement import no_room_in_group
from lvp_target_lvm.tags import GROWTH
from provisioner.contracts import Capacity, Device
from provisioner.contracts.errors import NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lvp_target_lvm.report import Inventory, Lv
    from lvp_target_lvm.resize import Growth
    from provisioner.contracts import StageRequest


class PlainTarget(GroupTarget):
    """Linear and striped volumes."""

    async def capacity(self) -> Capacity:
        inventory = await self.lvm.inventory()
        return Capacity(inventory.group.size, inventory.group.free, freeable_bytes=self._freeable(inventory))

    def _space_of(self, lv: Lv) -> int:
        return lv.size

    def _with_more_room(self, inventory: Inventory, freed: int) -> Inventory:
        return replace(inventory, group=replace(inventory.group, free=inventory.group.free + freed))

    def _fits_kind(self, lv: Lv) -> bool:
        return bool(lv.layout) and lv.layout <= {"linear", "striped"}

    def _no_room(self, inventory: Inventory, request: StageRequest) -> str | None:
        return no_room_in_group(inventory, request.size_bytes)

    async def _make(self, inventory: Inventory, request: StageRequest, name: str, words: Sequence[str]) -> None:
        # Clear the first 4 KiB and wipe signatures, so that the host does not detect the last owner's partitions or
        # file systems while the image is copied.
        size = ("--size", f"{inventory.group.rounded(request.size_bytes)}b")
        cleared = ("--zero", "y", "--wipesignatures", "y")
        await self.lvm.change("lvcreate", "--type", "linear", "--name", name, *size, *cleared, *words, self._group)

    async def _fresh(self, inventory: Inventory, path: str, size: int) -> Device:  # noqa: ARG002
        if self._settings.stale_data == "discard":
            await devices.discard(path)
        # A discarded disk is not guaranteed to read as zeros.
        return Device(path, size, reads_zero=False, zero_tail=self._settings.stale_data != "keep")

    async def _used(self, inventory: Inventory, path: str, size: int) -> Device:
        return await self._fresh(inventory, path, size)

    async def _grow(self, inventory: Inventory, growth: Growth) -> None:
        if (refusal := no_room_in_group(inventory, growth.more)) is not None:
            raise NoSpaceError(refusal)
        staging = await self._new_staging(growth.request, None, use=GROWTH)
        async with self._settled(staging):
            await self._make(inventory, growth.request, staging.name, staging.tag_options())
            await devices.appeared(staging.path)
            if self._settings.stale_data != "keep":
                await devices.zero(staging.path)
            await self._refuse_open(await growth.unchanged(self.lvm))
            await growth.move_extents(self.lvm, staging.name)
            staging.clean = True

    async def _wipe(self, path: str) -> None:
        if self._settings.stale_data == "discard":
            await devices.discard(path)
        elif self._settings.stale_data == "zero":
            await devices.zero(path)

    def _wipes(self) -> bool:
        return self._settings.stale_data != "keep"
