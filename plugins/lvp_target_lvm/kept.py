"""Replaced volumes that are kept aside in the volume group: ``lvp.kept.TOKEN``, inactive, with the tags of their swap.

A swap that keeps the old volume adds the tags ``replacedat``, ``keptuntil`` and ``bytes`` (the space it takes) when it
sets the volume aside, and renames ``lvp.old.TOKEN`` to ``lvp.kept.TOKEN`` at its end (``recovery``). A restore is a
swap whose new volume is the kept one: it gets the tag ``restoring`` with the token of the restore, which recovery
recognizes like the ``token`` of a new volume.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from lvp_target_lvm import devices, names, tags
from lvp_target_lvm.holders import in_use, inventory_once_closed
from lvp_target_lvm.placement import snapshots_of, why_not_replaced
from lvp_target_lvm.staging import Staging, add_tag_options
from provisioner.contracts import (
    RESTORE_KEEP,
    KeepingTarget,
    KeptVolume,
    Owner,
    Provenance,
    StageRequest,
    Volume,
    removable,
    undoing,
)
from provisioner.contracts.errors import (
    NotFoundError,
    ProvisionerError,
    TargetError,
    VolumeExistsError,
    VolumeInUseError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lvp_target_lvm.lvm import Lvm
    from lvp_target_lvm.report import Inventory, Lv
    from lvp_target_lvm.settings import LvmSettings

    NoRoom = Callable[[Inventory, StageRequest], str | None]

# Seconds; as for a staging.
_UNDO_TIME = 180.0


def kept_volume(lv: Lv, target: str) -> KeptVolume | None:
    """Return ``lv`` as a kept volume, or None if it is none. Pure."""
    noted = lv.noted
    if not lv.name.startswith(names.KEPT) or "old" not in noted:
        return None
    return KeptVolume(
        lv.name,
        noted["old"],
        target,
        lv.size,
        noted.get("byjob", ""),
        tags.number(noted.get("replacedat", "")),
        tags.number(noted.get("keptuntil", "")),
        tags.provenance_of(lv.tags),
    )


class KeepingGroup(KeepingTarget):
    """The part of a target that deals with kept volumes."""

    lvm: Lvm
    _settings: LvmSettings
    _group: str
    _live: set[str]

    @abstractmethod
    def _fits_kind(self, lv: Lv) -> bool: ...

    @abstractmethod
    def _no_room(self, inventory: Inventory, request: StageRequest) -> str | None: ...

    @abstractmethod
    def _space_of(self, lv: Lv) -> int:
        """Return the bytes that removing ``lv`` frees, about."""

    @abstractmethod
    def _with_more_room(self, inventory: Inventory, freed: int) -> Inventory:
        """Return the inventory as if ``freed`` more bytes were free."""

    @abstractmethod
    async def _claim(self) -> str: ...

    @abstractmethod
    async def _remove_lv(self, lv: Lv) -> None: ...

    @abstractmethod
    async def _clean_up(self, tokens: frozenset[str], untouched: frozenset[str] = frozenset()) -> None: ...

    @abstractmethod
    def _as_volume(self, lv: Lv) -> Volume: ...

    def keep_time(self, volume: Volume) -> float:
        return self._settings.keep_seconds(volume.owner)

    async def kept(self) -> Sequence[KeptVolume]:
        return list(self._kept_in(await self.lvm.inventory()).values())

    async def remove_kept(self, kept_as: str) -> None:
        lv = self._find_kept(await inventory_once_closed(self.lvm, kept_as), kept_as)
        if lv.open:
            raise await in_use(f"the kept volume {self._group}/{kept_as} is in use and was not removed", lv)
        if "thickorigin" in lv.role:
            raise VolumeInUseError(f"the kept volume {self._group}/{kept_as} has snapshots; remove them first")
        await self._claim()
        with self._working_on(kept_as):
            await self._remove_lv(lv)

    async def restore(self, kept_as: str, job_id: str) -> Volume:
        owner, token = await self._claim(), names.new_token()
        lv = self._find_kept(await self.lvm.inventory(), kept_as)
        name, kept_token = lv.noted["old"], names.token_of(kept_as)
        old = (await inventory_once_closed(self.lvm, name)).volumes.get(name)
        await self._refuse_restore(old)
        request = StageRequest(name, lv.size, Provenance(job_id, "", None, 0.0))
        staging = Staging(self.lvm, request, token, old, self.name, owner)
        self._keep_old(staging, RESTORE_KEEP)
        failure: ProvisionerError | None = None
        with self._working_on(kept_as, token):
            try:
                await self._swap_in(staging, lv, owner)
            except ProvisionerError as error:
                failure = error
            finally:
                with undoing(f"clean up volume {name}", _UNDO_TIME):
                    await self._clean_up(frozenset({token, kept_token}))
        now = (await self.lvm.inventory()).volumes.get(name)
        if now is None or now.uuid != lv.uuid or not now.active or "by" in now.noted:
            raise failure or TargetError(f"LVM reported success, but {self._group}/{name} was not restored")
        return replace(self._as_volume(now), replaced=staging.replaced)

    async def adopt(self, volume: str, provenance: Provenance) -> Volume:
        names.check(self._group, volume)
        lv = (await self.lvm.inventory()).volumes.get(volume)
        if lv is None:
            raise NotFoundError(f"target {self.name} has no volume {volume}")
        full = f"{self._group}/{volume}"
        if lv.ours:
            raise VolumeExistsError(f"volume {full} belongs to this service already")
        if not self._fits_kind(lv) or lv.is_pool:
            raise VolumeExistsError(f"volume {full} is of another type; this target does not make such volumes")
        if "by" in lv.noted:
            raise VolumeInUseError(f"volume {full} is being replaced by job {lv.noted.get('byjob', '')}")
        made = tags.for_volume(volume, names.new_token(), provenance, owner=await self._claim())
        await self.lvm.change("lvchange", *add_tag_options(made), full)
        now = (await self.lvm.inventory()).volumes.get(volume)
        if now is None or now.uuid != lv.uuid or not set(made) <= set(now.tags):
            raise TargetError(f"LVM reported success, but {full} was not tagged")
        return self._as_volume(now)

    # --- room ---

    def _freeable(self, inventory: Inventory) -> int:
        """Return the bytes that kept volumes take which a job may remove."""
        return sum(self._space_of(lv) for lv in self._removable(inventory))

    def _no_room_even_so(self, inventory: Inventory, request: StageRequest) -> str | None:
        """Return why there is no room for ``request`` even without the kept volumes that may be removed, or None."""
        reason = self._no_room(inventory, request)
        if reason is None or not self._removable(inventory):
            return reason
        return self._no_room(self._with_more_room(inventory, self._freeable(inventory)), request) and reason

    async def _with_kept_removed(
        self, inventory: Inventory, request: StageRequest, no_room: NoRoom | None = None
    ) -> Inventory:
        """Remove kept volumes, as the settings allow, until there is room for ``request``; return the inventory.

        Removes none if that is not enough.
        """
        no_room = no_room or self._no_room
        if no_room(self._with_more_room(inventory, self._freeable(inventory)), request) is not None:
            return inventory
        for lv in self._removable(inventory):
            if no_room(inventory, request) is None:
                break
            try:
                await self.remove_kept(lv.name)
            except (NotFoundError, VolumeInUseError):
                continue
            inventory = await self.lvm.inventory()
        return inventory

    async def _refuse_unless_blank(self, old: Lv) -> None:
        """Raise VolumeExistsError if a foreign volume, which could not be kept, has content."""
        if old.ours or self._settings.foreign != "keep":
            return
        if not await devices.is_blank(devices.path_of(self._group, old.name)):
            raise VolumeExistsError(
                f"volume {self._group}/{old.name} was not created by this service and there is no room to keep it; "
                'free some space, or set foreign = "overwrite" to overwrite such volumes'
            )

    def _keep_old(self, staging: Staging, least_seconds: float = 0.0) -> None:
        """Let the staging keep the volume that it replaces, as the settings say and for at least that long."""
        if staging.old is not None:
            owner = Owner.of(tags.provenance_of(staging.old.tags))
            staging.keep_seconds = max(self._settings.keep_seconds(owner), least_seconds)
            staging.old_bytes = self._space_of(staging.old)

    # --- steps ---

    async def _swap_in(self, staging: Staging, lv: Lv, owner: str) -> None:
        """Set the present volume aside and give ``lv`` its old name: the commit point of a restore."""
        full, marks = f"{self._group}/{lv.name}", tags.for_restore(staging.token, owner)
        stale = [word for tag in tags.restore_tags(lv.tags) for word in ("--deltag", tag)]
        await self.lvm.change("lvchange", *stale, *add_tag_options(marks), full)
        # Recovery needs these tags to finish the restore, so verify them before changing anything else.
        now = (await self.lvm.inventory()).volumes.get(lv.name)
        if now is None or now.noted.get("restoring") != staging.token:
            raise TargetError(f"LVM reported success, but {full} was not tagged")
        if staging.old is not None:
            await staging.set_aside()
        await self.lvm.change("lvrename", self._group, lv.name, staging.request.name)

    async def _refuse_restore(self, old: Lv | None) -> None:
        """Raise an error if the volume that has the name now cannot be set aside."""
        if old is None:
            return
        any_owner = msgspec.structs.replace(self._settings, replace="swap", only_own=False, foreign="keep")
        inventory = await self.lvm.inventory()
        refusal = why_not_replaced(any_owner, inventory, old, old.size, fits_kind=self._fits_kind)
        if refusal is not None:
            raise VolumeExistsError(refusal)
        if old.open or "by" in old.noted:
            raise await in_use(f"volume {self._group}/{old.name} is in use and was not changed", old)

    @contextmanager
    def _working_on(self, kept_as: str, *tokens: str) -> Iterator[None]:
        """Keep recovery and other work away from a kept volume. Raises VolumeInUseError if it is being worked on."""
        if self._live & {names.token_of(kept_as)}:
            raise VolumeInUseError(f"the kept volume {self._group}/{kept_as} is being restored or removed")
        taken = {names.token_of(kept_as), *tokens}
        self._live |= taken
        try:
            yield
        finally:
            self._live -= taken

    def _kept_in(self, inventory: Inventory) -> dict[str, KeptVolume]:
        fitting = (lv for lv in inventory.volumes.values() if self._fits_kind(lv))
        found = (kept_volume(lv, self.name) for lv in fitting)
        return {kept.kept_as: kept for kept in found if kept is not None}

    def _removable(self, inventory: Inventory) -> list[Lv]:
        kept = removable(self._kept_in(inventory).values(), self._settings)
        lvs = (inventory.volumes[one.kept_as] for one in kept)
        return [lv for lv in lvs if not lv.open and not snapshots_of(lv, inventory)]

    def _find_kept(self, inventory: Inventory, kept_as: str) -> Lv:
        if kept_as not in self._kept_in(inventory):
            raise NotFoundError(f"target {self.name} keeps no volume {kept_as[:255]!r}")
        return inventory.volumes[kept_as]
