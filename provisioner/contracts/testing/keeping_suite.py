"""The conformance suite for block targets that keep replaced volumes."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from provisioner.contracts.errors import NotFoundError, VolumeExistsError, VolumeInUseError, VolumeNameError
from provisioner.contracts.keeping import RESTORE_KEEP
from provisioner.contracts.testing.steps import a_provenance, a_request, raises
from provisioner.contracts.testing.target_suite import DIGEST, BlockTargetConformance, fill
from provisioner.contracts.testing.volume_access import VolumeAccess
from provisioner.contracts.types import MIB, KeptVolume, Owner, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from provisioner.contracts.target import BlockTarget, KeepingTarget

# Seconds.
_HOUR, _WEEK = 3600.0, 7 * 86400.0


class KeepingTargetConformance(VolumeAccess):
    """Conformance tests for a KeepingTarget, besides ``BlockTargetConformance``.

    Subclass it as ``Test...`` and override ``make_target`` and ``make_foreign_volume``.
    """

    size = 8 * MIB

    def make_target(self, folder: Path, **settings: Any) -> KeepingTarget:
        """Return a target with these ``KeepingSettings``. Another call simulates a restart of the service."""
        raise NotImplementedError

    async def make_foreign_volume(self, folder: Path, name: str, data: bytes) -> None:
        """Create a volume of ``size`` bytes that begins with ``data``, as another program would."""
        raise NotImplementedError

    @asynccontextmanager
    async def holding_open(self, target: BlockTarget, volume: Volume) -> AsyncIterator[None]:
        """Keep ``volume`` open in another process."""
        async with BlockTargetConformance().holding_open(target, volume):
            yield

    async def test_foreign_volume_is_kept(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        await self.make_foreign_volume(tmp_path, "web01", b"theirs")
        found = await target.find("web01")
        assert found is not None
        assert target.keep_time(found) == _WEEK
        new = await self._provision(target, b"new", "job-2")
        await self._assert_kept(target, new, Owner.FOREIGN, "job-2", _WEEK)

    async def test_own_volume_is_kept_if_set(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        first = await self._provision(target, b"first")
        assert first.replaced is None
        new = await self._provision(target, b"new", "job-2")
        (kept,) = await self._assert_kept(target, new, Owner.OURS, "job-2", _HOUR)
        assert kept.provenance == first.provenance

    async def test_own_volume_is_removed_by_default(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        await self._provision(target, b"first")
        new = await self._provision(target, b"new", "job-2")
        assert new.replaced is not None
        assert (new.replaced.owner, new.replaced.kept_as, new.replaced.kept_until) == (Owner.OURS, None, None)
        assert list(await target.kept()) == []

    async def test_seed_is_kept_as_long_as_asked(self, tmp_path: Path) -> None:
        """A job makes two volumes; the smaller one says whose seed it is, and what it replaces can be restored."""
        target = self.make_target(tmp_path)
        first = replace(a_request("web01-seed", MIB), provenance=replace(a_provenance(), seed_of="web01"))
        again = replace(first, provenance=replace(a_provenance("job-2"), seed_of="web01"), keep_seconds=_HOUR)
        for request, data in ((first, b"first"), (again, b"again")):
            volume = a_request(size_bytes=self.size, job_id=request.job_id)
            async with target.stage(volume, verified=False) as staged, target.stage(request, verified=False) as seed:
                fill(staged.device, b"volume")
                fill(seed.device, data)
                await seed.commit(None)
                made = await staged.commit(DIGEST)
            assert made.provenance is not None
            assert made.provenance.seed_of is None
        found = await self.make_target(tmp_path).find("web01-seed")
        assert found is not None
        assert found.provenance == again.provenance
        (kept,) = await target.kept()
        assert (kept.volume, kept.job_id, kept.provenance) == ("web01-seed", "job-2", first.provenance)
        assert kept.kept_until >= kept.replaced_at + _HOUR
        assert (await target.capacity()).freeable_bytes == 0
        await target.remove("web01-seed")
        assert await self.head(await target.restore(kept.kept_as, "job-2")) == b"first"
        assert list(await target.kept()) == []

    async def test_kept_volumes_of_one_name(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        volumes = [await self._provision(target, data, "job-1") for data in (b"one", b"two", b"three")]
        kept = await target.kept()
        assert {one.kept_as for one in kept} == {volume.replaced.kept_as for volume in volumes if volume.replaced}
        assert len(kept) == 2

    async def test_kept_name_is_no_volume_name(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        kept_as = await self._replaced_as(target)
        with raises(VolumeNameError):
            target.check_name(kept_as)

    async def test_failed_commit_keeps_nothing_aside(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        old = await self._provision(target, b"old")
        async with target.stage(a_request("web01", self.size, "job-2"), verified=True) as staged:  # noqa: SIM117
            async with self.holding_open(target, old):
                with raises(VolumeInUseError):
                    await staged.commit(DIGEST)
        assert list(await target.kept()) == []
        assert list(await target.recover(frozenset())) == []
        assert await target.find("web01") == old
        assert await self.head(old) == b"old"

    async def test_restore_swaps_and_can_be_undone(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        await self.make_foreign_volume(tmp_path, "web01", b"theirs")
        new = await self._provision(target, b"new")
        assert new.replaced is not None
        assert new.replaced.kept_as is not None
        restored = await target.restore(new.replaced.kept_as, "restore-1")
        assert (restored.name, restored.provenance, await self.head(restored)) == ("web01", None, b"theirs")
        (kept,) = await self._assert_kept(target, restored, Owner.OURS, "restore-1", RESTORE_KEEP)
        again = await target.restore(kept.kept_as, "restore-2")
        assert (again.provenance, await self.head(again)) == (new.provenance, b"new")
        (kept,) = await self._assert_kept(target, again, Owner.FOREIGN, "restore-2", _WEEK)

    async def test_restore_to_free_name(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        kept_as = await self._replaced_as(target)
        await target.remove("web01")
        restored = await self.make_target(tmp_path).restore(kept_as, "restore-1")
        assert restored.replaced is None
        assert await self.head(restored) == b"first"
        assert list(await target.list()) == [restored]
        assert list(await target.kept()) == []
        assert list(await target.recover(frozenset())) == []

    async def test_restored_volume_can_be_replaced(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        await target.restore(await self._replaced_as(target), "restore-1")
        new = await self._provision(target, b"third", "job-3")
        assert await self.head(new) == b"third"
        assert len(await target.kept()) == 2

    async def test_restore_over_open_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        kept_as = await self._replaced_as(target)
        new = await target.find("web01")
        assert new is not None
        before = list(await target.kept())
        async with self.holding_open(target, new):
            with raises(VolumeInUseError):
                await target.restore(kept_as, "restore-1")
        assert await target.find("web01") == new
        assert await self.head(new) == b"second"
        assert list(await target.kept()) == before
        assert list(await target.recover(frozenset())) == []

    async def test_remove_kept(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        kept_as = await self._replaced_as(target)
        await target.remove_kept(kept_as)
        assert list(await target.kept()) == []
        assert list(await target.recover(frozenset())) == []
        for name in (kept_as, "web01", "../web01", ""):
            with raises(NotFoundError):
                await target.remove_kept(name)
            with raises(NotFoundError):
                await target.restore(name, "restore-1")
        assert len(await target.list()) == 1

    async def test_recover_leaves_kept_volumes(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        await self.make_foreign_volume(tmp_path, "web01", b"theirs")
        await self._provision(target, b"new")
        for recovered in (target.recover(frozenset()), target.take_over(), self.make_target(tmp_path).take_over()):
            assert list(await recovered) == []
        assert len(await target.kept()) == 1

    async def test_foreign_volume_is_refused_if_set(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, foreign="refuse")
        await self.make_foreign_volume(tmp_path, "web01", b"theirs")
        with raises(VolumeExistsError):
            await target.placement(a_request("web01", self.size))

    async def test_freeable_space(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path, keep_replaced=_HOUR)
        await self.make_foreign_volume(tmp_path, "web01", b"theirs")
        await self._provision(target, b"first")
        assert (await target.capacity()).freeable_bytes == 0
        await self._provision(target, b"second", "job-2")
        freeable = (await target.capacity()).freeable_bytes
        assert freeable > 0
        assert (await self.make_target(tmp_path, remove_kept="all").capacity()).freeable_bytes > freeable
        assert (await self.make_target(tmp_path, remove_kept="never").capacity()).freeable_bytes == 0

    async def test_adopt(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        await self.make_foreign_volume(tmp_path, "web01", b"theirs")
        foreign = await target.find("web01")
        assert foreign is not None
        async with self.holding_open(target, foreign):
            adopted = await target.adopt("web01", a_provenance("adopt-1"))
        assert adopted.provenance is not None
        assert (adopted.provenance.job_id, await self.head(adopted)) == ("adopt-1", b"theirs")
        assert list(await self.make_target(tmp_path).list()) == [adopted]
        with raises(VolumeExistsError):
            await target.adopt("web01", a_provenance("adopt-2"))
        with raises(NotFoundError):
            await target.adopt("web02", a_provenance("adopt-2"))

    async def _provision(self, target: KeepingTarget, data: bytes, job_id: str = "job-1") -> Volume:
        async with target.stage(a_request("web01", self.size, job_id), verified=True) as staged:
            fill(staged.device, data)
            return await staged.commit(DIGEST)

    async def _replaced_as(self, target: KeepingTarget) -> str:
        """Provision twice; return the name under which the first volume is kept."""
        await self._provision(target, b"first")
        replaced = (await self._provision(target, b"second", "job-2")).replaced
        assert replaced is not None
        assert replaced.kept_as is not None
        return replaced.kept_as

    async def _assert_kept(
        self, target: KeepingTarget, new: Volume, owner: Owner, job_id: str, seconds: float
    ) -> list[KeptVolume]:
        """Check that what ``new`` replaced is kept, and that only ``new`` is visible."""
        replaced = new.replaced
        assert replaced is not None
        kept = list(await target.kept())
        (one,) = kept
        assert (replaced.volume, replaced.owner) == ("web01", owner)
        assert (replaced.kept_as, replaced.kept_until) == (one.kept_as, one.kept_until)
        assert (one.volume, one.target, one.owner, one.job_id) == ("web01", target.name, owner, job_id)
        assert one.size_bytes >= self.size
        assert abs(one.replaced_at - time.time()) < 600
        assert round(one.kept_until - one.replaced_at) == seconds
        assert await target.find("web01") == new
        assert list(await target.list()) == ([] if new.provenance is None else [new])
        return kept
