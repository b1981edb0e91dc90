"""The base of both LVM targets: looks up, lists, stages, replaces, removes and recovers volumes of a volume group.

A subclass defines which volumes are of its kind, how to make one, and whether there is room for it.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lvp_target_lvm import devices, names, recovery, tags
from lvp_target_lvm.diagnostics import findings_of_group
from lvp_target_lvm.holders import in_use, inventory_once_closed
from lvp_target_lvm.kept import KeepingGroup
from lvp_target_lvm.lvm import Lvm
from lvp_target_lvm.placement import Plan, is_users, place, refuse_open, snapshots_of
from lvp_target_lvm.removal import remove_wiped
from lvp_target_lvm.resize import Growth
from lvp_target_lvm.staging import Staged, Staging
from provisioner.contracts import Device, Placement, Volume, check_growth, undoing
from provisioner.contracts.errors import (
    NotFoundError,
    ProvisionerError,
    VolumeExistsError,
    VolumeInUseError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from lvp_target_lvm.report import Inventory, Lv
    from lvp_target_lvm.settings import LvmSettings
    from provisioner.contracts import BackEndContext, Finding, StagedVolume, StageRequest

# Enough for three commands, each of which may wait for udev and LVM's own retries, and a report.
_UNDO_TIME = 180.0
# One lock file for each volume group, in a folder that all installations on this host share.
LOCKS = Path("/run/lock/libvirt-volume-provisioner")


class GroupTarget(KeepingGroup):
    """Volumes in one volume group."""

    def __init__(self, settings: LvmSettings, context: BackEndContext) -> None:
        self.name = context.name
        self.lvm = Lvm(settings)
        self._settings = settings
        self._group = settings.volume_group
        # Tokens of stagings in progress; recovery leaves their volumes alone.
        self._live: set[str] = set()
        self._lock = context.place_lock(LOCKS / self._group, f"the volume group {self._group}", shared=settings.shared)

    @abstractmethod
    def _fits_kind(self, lv: Lv) -> bool:
        """Return whether ``lv`` is of the kind this target makes, even if something else made it."""

    @abstractmethod
    def _no_room(self, inventory: Inventory, request: StageRequest) -> str | None:
        """Return why there is no room for ``request``, or None if there is room."""

    @abstractmethod
    async def _make(self, inventory: Inventory, request: StageRequest, name: str, words: Sequence[str]) -> None:
        """Create the volume ``name``; ``words`` are the options for its tags."""

    @abstractmethod
    async def _fresh(self, inventory: Inventory, path: str, size: int) -> Device:
        """Return the device of a new volume, after handling stale data as configured."""

    @abstractmethod
    async def _used(self, inventory: Inventory, path: str, size: int) -> Device:
        """Return the device of a volume to overwrite, after handling its old data as configured."""

    @abstractmethod
    def _wipes(self) -> bool:
        """Return whether removed volumes are wiped."""

    @abstractmethod
    async def _wipe(self, path: str) -> None:
        """Wipe a removed volume as configured."""

    @abstractmethod
    async def _grow(self, inventory: Inventory, growth: Growth) -> None:
        """Grow a volume whose state was checked. Raises NoSpaceError, ResizeError or VolumeInUseError."""

    # --- lookup ---

    def check_name(self, volume: str) -> None:
        names.check(self._group, volume)

    async def find(self, volume: str) -> Volume | None:
        lv = (await self.lvm.inventory()).volumes.get(volume)
        return None if lv is None or not is_users(lv) else self._as_volume(lv)

    async def list(self) -> Sequence[Volume]:
        volumes = (await self.lvm.inventory()).volumes.values()
        return [self._as_volume(lv) for lv in volumes if lv.ours and is_users(lv) and self._fits_kind(lv)]

    async def placement(self, request: StageRequest) -> Placement:
        self.check_name(request.name)
        return (await self._plan(await self.lvm.recent_inventory(), request)).placement

    async def diagnose(self) -> Sequence[Finding]:
        return await findings_of_group(self.lvm, self._settings, self._lock)

    async def aclose(self) -> None:
        self._lock.release()

    async def _claim(self) -> str:
        """Lock the volume group against other installations; return this one's id. Raises TargetUnavailableError."""
        return await trio.to_thread.run_sync(self._lock.take)

    async def _new_staging(self, request: StageRequest, old: Lv | None, **more_tags: str) -> Staging:
        owner = await self._claim()
        staging = Staging(self.lvm, request, names.new_token(), old, self.name, owner, **more_tags)
        self._keep_old(staging, request.keep_seconds)
        return staging

    # --- staging ---

    @asynccontextmanager
    async def stage(self, request: StageRequest, *, verified: bool) -> AsyncIterator[StagedVolume]:
        self.check_name(request.name)
        inventory = await self._inventory_for(request)
        plan = await self._plan(inventory, request)
        staging = await self._new_staging(request, plan.old)
        if plan.placement is Placement.IN_PLACE:
            if not verified:
                raise VolumeExistsError(
                    f"there is no room to stage a second volume {request.name}, and only an image verified "
                    "beforehand may overwrite it in place"
                )
            async with self._settled(staging):
                yield await self._overwritten(inventory, staging)
            return
        async with self._settled(staging):
            await self._make(inventory, request, staging.name, staging.tag_options())
            number = await devices.appeared(staging.path)
            size = await devices.size_of(staging.path)
            yield Staged(staging, await self._fresh(inventory, staging.path, size), number, self._undo)

    async def _inventory_for(self, request: StageRequest) -> Inventory:
        """Return the inventory, after freeing space for ``request`` if possible."""
        return await self._with_kept_removed(await self.lvm.inventory(), request)

    async def _overwritten(self, inventory: Inventory, staging: Staging) -> Staged:
        number = await staging.set_aside_to_overwrite()
        device = await self._used(inventory, staging.path, await devices.size_of(staging.path))
        return Staged(staging, device, number, self._undo)

    async def _plan(self, inventory: Inventory, request: StageRequest) -> Plan:
        inventory = await inventory_once_closed(self.lvm, request.name, inventory)
        no_room = self._no_room_even_so(inventory, request)
        try:
            plan = place(self._settings, inventory, request, fits_kind=self._fits_kind, no_room=no_room)
        except VolumeInUseError as error:
            raise await in_use(error.message, inventory.volumes[request.name]) from error
        if plan.placement is Placement.IN_PLACE and plan.old is not None:
            await self._refuse_unless_blank(plan.old)
        return plan

    @asynccontextmanager
    async def _settled(self, staging: Staging) -> AsyncIterator[None]:
        """Finish or undo the staging on exit, however the block ends.

        Unless the staging is clean, inspect the volume group to decide what to do, as after a power cut.
        """
        self._live.add(staging.token)
        try:
            yield
            await self._wipe_old(staging)
        finally:
            try:
                await self._undo(staging)
            finally:
                self._live.discard(staging.token)

    async def _wipe_old(self, staging: Staging) -> None:
        """Wipe the replaced volume unless it is kept. It is removed right after, even if wiping fails."""
        if staging.committed and not staging.clean and not staging.keep_seconds and self._wipes():
            old = names.OLD + staging.token
            await self.lvm.change("lvchange", "-ay", "-K", f"{self._group}/{old}")
            path = devices.path_of(self._group, old)
            await devices.appeared(path)
            await self._wipe(path)

    async def _undo(self, staging: Staging) -> None:
        if not staging.clean:
            with undoing(f"clean up volume {staging.request.name}", _UNDO_TIME):
                await self._settle(staging)
                staging.clean = True

    async def _settle(self, staging: Staging) -> None:
        untouched = frozenset({staging.token}) if await staging.is_untouched() else frozenset[str]()
        await self._clean_up(frozenset({staging.token}), untouched)

    async def _clean_up(self, tokens: frozenset[str], untouched: frozenset[str] = frozenset()) -> None:
        """Finish or roll back the swaps ``tokens``, as recovery would after a power cut."""
        decisions = recovery.decide(
            await self.lvm.inventory(), lambda _, token: token in tokens, self._fits_kind, untouched=untouched
        )
        for decision in decisions:
            await self._carry_out(decision)

    # --- removal ---

    async def remove(self, volume: str) -> None:
        inventory, lv = await self._own(volume)
        await self._refuse_open(lv)
        self._refuse_origin(lv, inventory)
        await self._claim()
        await self._remove_lv(lv)

    async def _remove_lv(self, lv: Lv) -> None:
        if not self._wipes():
            # The kernel refuses to remove an open device, so there is no race with a process that opens it.
            await self.lvm.change("lvremove", f"{self._group}/{lv.name}")
            return
        token = names.new_token()
        self._live.add(token)
        try:
            await remove_wiped(self.lvm, lv, token, self._wipe)
        finally:
            self._live.discard(token)

    async def _own(self, volume: str) -> tuple[Inventory, Lv]:
        """Return the inventory and a volume that this service created. Raises NotFoundError."""
        inventory = await inventory_once_closed(self.lvm, volume)
        lv = inventory.volumes.get(volume)
        if lv is None or not lv.ours or not is_users(lv) or not self._fits_kind(lv):
            raise NotFoundError(f"target {self.name} has no volume {volume} that this service created")
        return inventory, lv

    async def _refuse_open(self, lv: Lv) -> None:
        try:
            refuse_open(self._settings, lv)
        except VolumeInUseError as error:
            raise await in_use(error.message, lv) from error

    def _refuse_origin(self, lv: Lv, inventory: Inventory) -> None:
        if lv.role & {"thickorigin"}:
            raise VolumeInUseError(
                f"volume {self._group}/{lv.name} has snapshots ({snapshots_of(lv, inventory)}); remove them first"
            )

    # --- resizing ---

    async def resize(self, volume: str, size_bytes: int, *, online: bool = False) -> Volume:
        inventory, lv = await self._own(volume)
        size = inventory.group.rounded(size_bytes)
        check_growth(self._as_volume(lv), size)
        if size > lv.size:
            self._refuse_origin(lv, inventory)
            await self._refuse_open(replace(lv, open=lv.open and not online))
            await self._claim()
            await self._grow(inventory, Growth(lv, size, online))
        return replace(self._as_volume(lv), size_bytes=size)

    # --- recovery ---

    async def recover(self, live_jobs: frozenset[str]) -> Sequence[str]:
        owner = await self._claim()
        return await self._recover(live_jobs, lambda found: found in {"", owner})

    async def take_over(self) -> Sequence[str]:
        await self._claim()
        return await self._recover(frozenset(), lambda _: True)

    async def _recover(self, live_jobs: frozenset[str], is_ours: Callable[[str], bool]) -> Sequence[str]:
        inventory = await self.lvm.inventory()
        decisions = recovery.decide(
            inventory, lambda job, token: job not in live_jobs and token not in self._live, self._fits_kind, is_ours
        )
        return [await self._recovered(decision) for decision in decisions]

    async def _recovered(self, decision: recovery.Decision) -> str:
        try:
            await self._carry_out(decision)
        except ProvisionerError as error:
            return f"failed: {decision.sentence}: {error.message}"
        return decision.sentence

    async def _carry_out(self, decision: recovery.Decision) -> None:
        for step in decision.steps:
            full = f"{self._group}/{step.volume}"
            if step.what == "remove":
                await self.lvm.change("lvremove", full)
            elif step.what == "rename":
                await self.lvm.change("lvrename", self._group, step.volume, step.words[0])
            else:
                await self.lvm.change("lvchange", "-ay", "-K", full)
                await self.lvm.change("lvchange", *(word for tag in step.words for word in ("--deltag", tag)), full)

    def _as_volume(self, lv: Lv) -> Volume:
        return Volume(lv.name, self.name, devices.path_of(self._group, lv.name), lv.size, tags.provenance_of(lv.tags))
