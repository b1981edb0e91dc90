"""The target ``thin-lvm``: volumes in a thin pool, and clones of bases in constant time.

A clone needs one LVM report, shared with the job's earlier lookups, and three changes: ``lvcreate -s``, ``lvextend``
and ``lvrename``. The base's digest is known, so the tags are complete at creation. The results of the changes are
checked in the kernel instead of with more reports.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from lvp_target_lvm import devices, names, tags
from lvp_target_lvm.bases import bases_in, eviction_order
from lvp_target_lvm.diagnostics import findings_of_pool
from lvp_target_lvm.group import GroupTarget
from lvp_target_lvm.pool_room import pool_of, watched, why_full, why_too_large, with_reserve
from lvp_target_lvm.staging import Staged, Staging
from provisioner.contracts import Base, Capacity, CloneTarget, Device, Placement, Volume
from provisioner.contracts.errors import (
    BaseGoneError,
    ChecksumMismatchError,
    InvalidRequestError,
    NoSpaceError,
    NotFoundError,
    ResizeError,
    TargetError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from lvp_target_lvm.report import Inventory, Lv
    from lvp_target_lvm.resize import Growth
    from lvp_target_lvm.settings import ThinSettings
    from provisioner.contracts import BackEndContext, Finding, StagedVolume, StageRequest

# Seconds for which a base is not evicted after a lookup found it, so that the job can clone it.
_BASE_GRACE = 60.0


class ThinTarget(GroupTarget):
    """Thin volumes in one pool."""

    _settings: ThinSettings

    async def capacity(self) -> Capacity:
        inventory = await self.lvm.inventory()
        pool = pool_of(self._settings, inventory)
        free = int(pool.size * (100 - (pool.data_percent or 0)) / 100)
        return Capacity(pool.size, free, pool.data_percent, pool.metadata_percent, self._freeable(inventory))

    async def diagnose(self) -> Sequence[Finding]:
        return [*await super().diagnose(), *await findings_of_pool(self.lvm, self._settings)]

    @asynccontextmanager
    async def stage(self, request: StageRequest, *, verified: bool) -> AsyncIterator[StagedVolume]:
        async with super().stage(request, verified=verified) as staged:
            in_place = isinstance(staged, Staged) and staged.in_place
            async with self._watched(with_reserve(self._settings) if in_place else self._settings):
                yield staged

    def _watched(self, marks: ThinSettings) -> AbstractAsyncContextManager[None]:
        async def why_stop() -> str | None:
            return why_full(marks, pool_of(self._settings, await self.lvm.inventory()))

        return watched(why_stop, self._settings.watch_interval)

    async def _overwritten(self, inventory: Inventory, staging: Staging) -> Staged:
        # Check before the old volume is overwritten: stopping half-way would lose its content for nothing.
        if (refusal := why_full(with_reserve(self._settings), pool_of(self._settings, inventory))) is not None:
            raise NoSpaceError(f"{refusal} for overwriting in place, so volume {staging.request.name} is kept")
        return await super()._overwritten(inventory, staging)

    def _space_of(self, lv: Lv) -> int:
        # A kept volume is inactive, and LVM does not report the use of an inactive one.
        noted = int(tags.number(lv.noted.get("bytes", "")))
        return noted or int(lv.size * (lv.data_percent or 0.0) / 100)

    def _with_more_room(self, inventory: Inventory, freed: int) -> Inventory:
        pool = pool_of(self._settings, inventory)
        percent = max(0.0, (pool.data_percent or 0.0) - 100.0 * freed / pool.size)
        return replace(inventory, volumes={**inventory.volumes, pool.name: replace(pool, data_percent=percent)})

    def _fits_kind(self, lv: Lv) -> bool:
        return "thin" in lv.layout and not lv.is_pool and lv.pool == self._settings.pool

    def _no_room(self, inventory: Inventory, request: StageRequest) -> str | None:
        pool = pool_of(self._settings, inventory)
        too_large = why_too_large(self._settings, pool, request.size_bytes)
        return too_large or why_full(self._settings, pool, request.data_bytes or 0)

    async def _make(self, inventory: Inventory, request: StageRequest, name: str, words: Sequence[str]) -> None:
        size = ("--virtualsize", f"{inventory.group.rounded(request.size_bytes)}b")
        pool = ("--thinpool", f"{self._group}/{self._settings.pool}")
        await self.lvm.change("lvcreate", "--type", "thin", "--name", name, *size, *pool, *words, "-kn")

    async def _fresh(self, inventory: Inventory, path: str, size: int) -> Device:
        # Without zeroing, the unwritten parts of new chunks contain a previous owner's data.
        zeroing = pool_of(self._settings, inventory).zero
        return Device(path, size, reads_zero=zeroing, zero_tail=self._settings.stale_data != "keep")

    async def _used(self, inventory: Inventory, path: str, size: int) -> Device:
        pool = pool_of(self._settings, inventory)
        emptied = self._settings.stale_data == "discard" and pool.discards != "ignore"
        if emptied:
            await devices.discard(path)
        # Discarded chunks are unmapped and read as zero. A size in whole extents is usually one in whole chunks.
        whole = pool.chunk_size > 0 and size % pool.chunk_size == 0
        keep = self._settings.stale_data == "keep"
        return Device(path, size, reads_zero=emptied and whole and pool.zero, zero_tail=not keep)

    async def _grow(self, inventory: Inventory, growth: Growth) -> None:
        if not pool_of(self._settings, inventory).zero and self._settings.stale_data != "keep":
            raise ResizeError(
                f"thin pool {self._group}/{self._settings.pool} does not zero new chunks, so the new part could show "
                f"earlier data; turn it on (lvchange -Zy {self._group}/{self._settings.pool})"
            )
        wanted = replace(growth.request, size_bytes=growth.size)
        if (refusal := self._no_room(await self._inventory_for(wanted), wanted)) is not None:
            raise NoSpaceError(refusal)
        # The new part has no chunks yet, so it reads as zeros at once.
        await growth.extend(self.lvm)

    async def _wipe(self, path: str) -> None:
        await devices.discard(path)

    def _wipes(self) -> bool:
        # Writing zeros would allocate pool space and unshare chunks of a base; the pool zeroes chunks on reuse.
        return self._settings.stale_data == "discard"


class ThinCloneTarget(ThinTarget, CloneTarget):
    """Thin volumes cloned from read-only bases, one for each image, in the same pool."""

    def __init__(self, settings: ThinSettings, context: BackEndContext) -> None:
        super().__init__(settings, context)
        self._last_used: dict[str, float] = {}
        self._under_job: Counter[str] = Counter()

    async def base(self, image_digest: str, image_format: str) -> Base | None:
        name = names.base_name(image_digest, image_format)
        inventory = await self.lvm.recent_inventory()
        self._forget_gone(inventory)
        found = next((lv for lv in bases_in(inventory, self._settings.pool) if lv.name == name), None)
        if found is None:
            return None
        if (found.noted["digest"], found.noted.get("format")) != (image_digest, image_format):
            raise TargetError(f"the base {self._group}/{name} has tags of another image; remove it by hand")
        self._last_used[name] = time.time()
        return Base(name, image_digest, found.size)

    @asynccontextmanager
    async def stage_base(self, request: StageRequest) -> AsyncIterator[StagedVolume]:
        digest = request.provenance.image_digest
        if digest is None:
            raise InvalidRequestError("a base needs the digest of its image")
        inventory = await self._with_room(request, most_bases=self._settings.max_bases - 1)
        if (refusal := self._no_room(inventory, request)) is not None:
            raise NoSpaceError(refusal)
        named = replace(request, name=names.base_name(digest, request.name))
        staging = await self._new_staging(named, None, format=request.name)
        async with self._settled(staging), self._watched(self._settings):
            await self._make(inventory, request, staging.name, staging.tag_options())
            number = await devices.appeared(staging.path)
            device = await self._fresh(inventory, staging.path, await devices.size_of(staging.path))
            yield StagedBase(staging, device, number, self._undo)

    @asynccontextmanager
    async def stage_clone(self, base: Base, request: StageRequest) -> AsyncIterator[StagedVolume]:
        self.check_name(request.name)
        # A snapshot shares the base's data; only the guest's own writes take space.
        request = replace(request, data_bytes=None, provenance=replace(request.provenance, image_digest=base.digest))
        with self._using(base.name):
            inventory = await self._with_room(request, look=self.lvm.recent_inventory)
            plan = await self._plan(inventory, request)
            if plan.placement is Placement.IN_PLACE:
                raise NoSpaceError(self._no_room(inventory, request) or "a clone cannot be made in place")
            staging = await self._new_staging(request, plan.old)
            async with self._settled(staging):
                size = max(inventory.group.rounded(request.size_bytes), base.size_bytes)
                number = await self._snapshot(base, staging, size)
                yield Staged(staging, Device(staging.path, size, reads_zero=False, zero_tail=False), number, self._undo)

    async def _snapshot(self, base: Base, staging: Staging, size: int) -> int:
        """Create the snapshot, extend it and return its device number.

        The size is set separately because ``lvcreate -s`` with a size creates a snapshot that is not thin.
        """
        tagged = staging.tag_options()
        origin = f"{self._group}/{base.name}"
        try:
            await self.lvm.change("lvcreate", "-s", "-kn", "-prw", "--name", staging.name, *tagged, origin)
        except NotFoundError as error:
            raise BaseGoneError(f"the base {origin} was removed while the job was running") from error
        if size > base.size_bytes:
            await self.lvm.change("lvextend", "--size", f"{size}b", f"{self._group}/{staging.name}")
        number = await devices.appeared(staging.path)
        if await devices.size_of(staging.path) != size:
            raise TargetError(f"LVM reported success, but {staging.name} was not extended to {size} bytes")
        return number

    async def _inventory_for(self, request: StageRequest) -> Inventory:
        return await self._with_room(request)

    async def _with_room(
        self,
        request: StageRequest,
        most_bases: int | None = None,
        look: Callable[[], Awaitable[Inventory]] | None = None,
    ) -> Inventory:
        """Evict bases, least recently used first, until ``request`` fits or none is left; return the inventory."""
        stuck: set[str] = set()
        look = look or self.lvm.inventory
        while True:
            inventory = await look()
            self._forget_gone(inventory)
            many = most_bases is not None and len(bases_in(inventory, self._settings.pool)) > most_bases
            if not many and super()._no_room(inventory, request) is None:
                return inventory
            going = next((lv.name for lv in self._evictable(inventory) if lv.name not in stuck), None)
            if going is None:
                return await self._with_kept_removed(inventory, request, super()._no_room)
            # Try each base once; one that cannot be removed stays.
            stuck.add(going)
            with suppress(TargetError):
                await self.lvm.change("lvremove", f"{self._group}/{going}")

    def _no_room(self, inventory: Inventory, request: StageRequest) -> str | None:
        reason = super()._no_room(inventory, request)
        may_be_made = request.size_bytes <= pool_of(self._settings, inventory).size and self._evictable(inventory)
        return None if may_be_made else reason

    def _evictable(self, inventory: Inventory) -> list[Lv]:
        recently = {name for name, at in self._last_used.items() if time.time() - at < _BASE_GRACE}
        return eviction_order(inventory, self._settings.pool, self._last_used, recently | set(self._under_job))

    def _forget_gone(self, inventory: Inventory) -> None:
        """Drop the usage times of removed bases, except recent ones: the inventory may be a second old."""
        for name, at in list(self._last_used.items()):
            if name not in inventory.volumes and time.time() - at >= _BASE_GRACE:
                del self._last_used[name]

    @contextmanager
    def _using(self, base: str) -> Iterator[None]:
        self._under_job[base] += 1
        try:
            yield
        finally:
            self._under_job[base] -= 1
            if not self._under_job[base]:
                del self._under_job[base]
            self._last_used[base] = time.time()


class StagedBase(Staged):
    """A base under construction. Its commit makes it read-only, inactive and skipped by activation."""

    async def commit(self, image_digest: str | None) -> Volume:
        if image_digest != self._staging.request.provenance.image_digest:
            raise ChecksumMismatchError(
                f"the image of the base has the digest {image_digest} instead of "
                f"{self._staging.request.provenance.image_digest}"
            )
        return await super().commit(image_digest)

    async def _publish(self) -> None:
        await self._staging.freeze()
        await self._staging.rename_inactive()


def make_thin_target(settings: ThinSettings, context: BackEndContext) -> ThinTarget:
    """Return a target that clones, or a plain thin target if ``clone`` is off."""
    return ThinCloneTarget(settings, context) if settings.clone else ThinTarget(settings, context)
