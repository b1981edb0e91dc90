"""Grows a volume in one step that leaves nothing to recover.

A thin volume is just extended. A plain volume would then show what an earlier owner wrote on the new extents. So these
extents first are a staged volume of their own, which is zeroed. Then the staged volume is removed, and the volume is
extended by exactly its extents: the new size becomes visible with the zeros. After a failure, a cancel or a power cut
the volume has its old size, or is complete, and recovery removes the staged volume.

Between the removal and the extension no other target of this process can take the extents. If another program does,
the extension fails and the volume is unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lvp_target_lvm import devices
from lvp_target_lvm.holders import inventory_once_closed
from lvp_target_lvm.tags import provenance_of
from provisioner.contracts import Provenance, StageRequest
from provisioner.contracts.errors import ProvisionerError, TargetError, VolumeExistsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lvp_target_lvm.lvm import Lvm
    from lvp_target_lvm.report import Lv

# A discard after the removal could undo the zeros.
_KEEP_CONTENT = " devices{issue_discards=0}"


@dataclass(frozen=True, slots=True)
class Growth:
    """A volume as it was found, and the size in bytes that it gets. ``online``: it may be open."""

    lv: Lv
    size: int
    online: bool

    @property
    def more(self) -> int:
        """Return the size of the new part in bytes."""
        return self.size - self.lv.size

    @property
    def request(self) -> StageRequest:
        """Return the request for a staged volume of the new extents."""
        origin = provenance_of(self.lv.tags) or Provenance("", "", None, 0.0)
        return StageRequest(self.lv.name, self.more, origin)

    async def unchanged(self, lvm: Lvm) -> Lv:
        """Return the volume's current state, as closed if it may be open. Raises VolumeExistsError."""
        now = (await inventory_once_closed(lvm, self.lv.name)).volumes.get(self.lv.name)
        if now is None or (now.uuid, now.size) != (self.lv.uuid, self.lv.size):
            raise VolumeExistsError(f"volume {lvm.group}/{self.lv.name} was changed by another program meanwhile")
        return replace(now, open=now.open and not self.online)

    async def move_extents(self, lvm: Lvm, staged: str) -> None:
        """Remove the staged volume and extend the volume by its extents."""
        extents = await lvm.extents_of(staged)
        async with lvm.alone():
            await lvm.change("lvremove", f"{lvm.group}/{staged}", config=_KEEP_CONTENT)
            failure = await self._try_to_extend(lvm, extents)
        await self._verify(lvm, failure)

    async def extend(self, lvm: Lvm) -> None:
        """Extend the volume with extents or chunks that LVM chooses."""
        await self._verify(lvm, await self._try_to_extend(lvm))

    async def _try_to_extend(self, lvm: Lvm, extents: Sequence[str] = ()) -> ProvisionerError | None:
        # A new part of a striped volume is linear, because its extents are on one disk.
        stripes = ("--stripes", "1") if extents else ()
        try:
            await lvm.change("lvextend", *stripes, "--size", f"{self.size}b", f"{lvm.group}/{self.lv.name}", *extents)
        except ProvisionerError as error:
            return error
        return None

    async def _verify(self, lvm: Lvm, failure: ProvisionerError | None) -> None:
        """Check the volume's size. A command that LVM reports as failed may still have taken effect."""
        now = (await lvm.inventory()).volumes.get(self.lv.name)
        reached = now is not None and now.size == self.size
        if reached and now is not None and now.active:
            reached = await devices.size_of(devices.path_of(lvm.group, now.name)) == self.size
        if not reached:
            raise failure or TargetError(f"LVM reported success, but {lvm.group}/{self.lv.name} was not extended")
