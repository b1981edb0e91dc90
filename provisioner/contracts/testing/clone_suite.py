"""The conformance suite for block targets that clone volumes from bases."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import BaseExistsError, BaseGoneError, ChecksumMismatchError, VolumeInUseError
from provisioner.contracts.testing.steps import a_provenance, a_request, raises
from provisioner.contracts.testing.target_suite import DIGEST, BlockTargetConformance, fill
from provisioner.contracts.testing.volume_access import VolumeAccess
from provisioner.contracts.types import MIB, Base, StageRequest, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from provisioner.contracts.target import BlockTarget, CloneTarget

OTHER_DIGEST = "sha256:" + "cd" * 32


class CloneTargetConformance(VolumeAccess):
    """Conformance tests for a CloneTarget, besides ``BlockTargetConformance``.

    Subclass it as ``Test...`` and override ``make_target`` and ``remove_base``. Bases have ``size`` bytes.
    """

    size = 8 * MIB

    def make_target(self, folder: Path) -> CloneTarget:
        """Return a target. Another call with the same folder simulates a restart of the service."""
        raise NotImplementedError

    def make_other_host(self, folder: Path) -> CloneTarget | None:  # noqa: ARG002
        """Return a target for the same place on another host, which works at the same time; None if none can."""
        return None

    async def remove_base(self, target: CloneTarget, base: Base) -> None:
        """Remove a base, as another program would."""
        raise NotImplementedError

    @asynccontextmanager
    async def holding_open(self, target: BlockTarget, volume: Volume) -> AsyncIterator[None]:
        """Keep ``volume`` open in another process."""
        async with BlockTargetConformance().holding_open(target, volume):
            yield

    async def test_base_is_found_but_no_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        assert await target.base(DIGEST, "raw") is None
        base = await self._make_base(target)
        assert (base.digest, base.size_bytes >= self.size) == (DIGEST, True)
        for one in (target, self.make_target(tmp_path)):
            assert await one.base(DIGEST, "raw") == base
            assert await one.base(DIGEST, "qcow2") is None
            assert await one.base(OTHER_DIGEST, "raw") is None
            assert list(await one.list()) == []
            assert await one.find(base.name) is None
            assert await one.why_copy(a_request("web01", self.size)) is None
        assert list(await target.recover(frozenset())) == []
        assert await target.base(DIGEST, "raw") == base

    async def test_clone_has_the_content_then_zeros(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        volume = await self._clone(target, base, a_request("web01", 2 * self.size))
        assert (volume.name, volume.target, volume.size_bytes >= 2 * self.size) == ("web01", target.name, True)
        content = await self.read_volume(volume)
        assert len(content) == volume.size_bytes
        assert content[:4096] == b"image".ljust(4096, b"\0")
        assert not any(content[4096:])
        assert volume.provenance is not None
        assert (volume.provenance.job_id, volume.provenance.image_digest) == ("job-1", DIGEST)
        assert list(await self.make_target(tmp_path).list()) == [volume]

    async def test_clones_do_not_share_writes(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        first = await self._clone(target, base, a_request("web01", self.size))
        await self.write_volume(first, b"guest")
        second = await self._clone(target, base, a_request("web02", self.size, "job-2"))
        assert (await self.head(first), await self.head(second)) == (b"guest", b"image")

    async def test_clone_outlives_its_base(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        volume = await self._clone(target, base, a_request("web01", self.size))
        await self.remove_base(target, base)
        assert await self.make_target(tmp_path).base(DIGEST, "raw") is None
        assert await self.head(volume) == b"image"

    async def test_clone_of_a_removed_base(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        await self.remove_base(target, base)
        with raises(BaseGoneError):
            async with target.stage_clone(base, a_request("web01", self.size)):
                raise AssertionError("a removed base cannot be cloned")
        await self._assert_no_volume(target)

    async def test_clone_without_commit_rolls_back(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        with raises(ZeroDivisionError):
            async with target.stage_clone(base, a_request("web01", self.size)) as staged:
                assert await target.find("web01") is None
                raise ZeroDivisionError
        await self._assert_no_volume(target)
        assert not await self.is_staged(staged)
        assert await target.base(DIGEST, "raw") == base

    async def test_clone_cancel_rolls_back(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        with trio.CancelScope() as scope:
            async with target.stage_clone(base, a_request("web01", self.size)):
                scope.cancel()
                await trio.sleep_forever()
        await self._assert_no_volume(target)

    async def test_clone_swaps_at_commit(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        async with target.stage(a_request("web01", self.size), verified=True) as staged:
            fill(staged.device, b"old")
            old = await staged.commit(None)
        base = await self._make_base(target)
        with raises(ZeroDivisionError):
            async with target.stage_clone(base, a_request("web01", self.size, "job-2")):
                assert await target.find("web01") == old
                raise ZeroDivisionError
        assert await target.find("web01") == old
        new = await self._clone(target, base, a_request("web01", self.size, "job-2"))
        assert await self.head(new) == b"image"
        assert list(await target.list()) == [new]

    async def test_clone_over_open_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        old = await self._clone(target, base, a_request("web01", self.size))
        await self.write_volume(old, b"guest")
        async with self.holding_open(target, old):
            with raises(VolumeInUseError):
                async with target.stage_clone(base, a_request("web01", self.size, "job-2")):
                    raise AssertionError("an open volume must not be replaced")
        async with target.stage_clone(base, a_request("web01", self.size, "job-2")) as staged:  # noqa: SIM117
            async with self.holding_open(target, old):
                with raises(VolumeInUseError):
                    await staged.commit(DIGEST)
        assert await target.find("web01") == old
        assert await self.head(old) == b"guest"

    async def test_base_without_commit_rolls_back(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        with raises(ZeroDivisionError):
            async with target.stage_base(self._base_request()) as staged:
                assert await target.base(DIGEST, "raw") is None
                raise ZeroDivisionError
        assert not await self.is_staged(staged)
        await self._assert_no_base(target)

    async def test_base_cancel_rolls_back(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        with trio.CancelScope() as scope:
            async with target.stage_base(self._base_request()):
                scope.cancel()
                await trio.sleep_forever()
        await self._assert_no_base(target)

    async def test_base_of_another_digest(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        with raises(ChecksumMismatchError):
            async with target.stage_base(self._base_request()) as staged:
                await staged.commit(OTHER_DIGEST)
        await self._assert_no_base(target)

    async def test_recover_removes_bases_of_dead_jobs(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        abandoned = target.stage_base(self._base_request("job-dead"))
        staged = await abandoned.__aenter__()  # simulate a power failure
        restarted = self.make_target(tmp_path)
        assert list(await restarted.recover(frozenset({"job-dead"}))) == []
        assert await self.is_staged(staged)
        assert len(await restarted.recover(frozenset())) == 1
        assert not await self.is_staged(staged)
        await self._assert_no_base(restarted)
        await abandoned.__aexit__(None, None, None)  # the rollback of the dead job finds nothing to do

    async def test_recover_removes_clones_of_dead_jobs(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        base = await self._make_base(target)
        abandoned = target.stage_clone(base, a_request("web01", self.size, "job-dead"))
        await abandoned.__aenter__()
        restarted = self.make_target(tmp_path)
        assert len(await restarted.recover(frozenset())) == 1
        await self._assert_no_volume(restarted)
        assert await restarted.base(DIGEST, "raw") == base
        await abandoned.__aexit__(None, None, None)

    async def test_one_base_for_all_hosts(self, tmp_path: Path) -> None:
        target, other = self.make_target(tmp_path), self.make_other_host(tmp_path)
        if other is None:
            return
        base = await self._make_base(target)
        assert await other.base(DIGEST, "raw") == base
        with raises(BaseExistsError):
            async with other.stage_base(self._base_request()):
                raise AssertionError("a base must not be made twice")
        await self._clone(other, base, a_request("web02", self.size, "job-2"))
        volume = await self._clone(target, base, a_request("web01", self.size))
        assert await self.head(volume) == b"image"
        assert [one.name for one in sorted(await other.list(), key=lambda one: one.name)] == ["web01", "web02"]
        assert list(await other.recover(frozenset())) == list(await target.recover(frozenset())) == []

    async def test_other_host_waits_for_a_base(self, tmp_path: Path) -> None:
        """It waits as long as the first one works, and does not take its job for dead."""
        target, other = self.make_target(tmp_path), self.make_other_host(tmp_path)
        if other is None:
            return
        outcome: list[str] = []

        async def wait() -> None:
            try:
                async with other.stage_base(self._base_request("job-2")):
                    outcome.append("staged")
            except BaseExistsError:
                outcome.append("exists")

        async with trio.open_nursery() as nursery, target.stage_base(self._base_request()) as staged:
            nursery.start_soon(wait)
            await other.recover(frozenset())
            assert await self.is_staged(staged)
            fill(staged.device, b"image")
            await staged.commit(DIGEST)
        assert outcome == ["exists"]
        assert list(await target.recover(frozenset())) == []

    def _base_request(self, job_id: str = "job-base") -> StageRequest:
        return StageRequest("raw", self.size, a_provenance(job_id, DIGEST))

    async def _make_base(self, target: CloneTarget) -> Base:
        async with target.stage_base(self._base_request()) as staged:
            fill(staged.device, b"image")
            await staged.commit(DIGEST)
        base = await target.base(DIGEST, "raw")
        assert base is not None
        return base

    async def _clone(self, target: CloneTarget, base: Base, request: StageRequest) -> Volume:
        async with target.stage_clone(base, request) as staged:
            assert staged.device.size_bytes >= request.size_bytes
            return await staged.commit(base.digest)

    async def _assert_no_volume(self, target: CloneTarget) -> None:
        assert await target.find("web01") is None
        assert list(await target.list()) == []
        assert list(await target.recover(frozenset())) == [], "the rollback was incomplete"

    async def _assert_no_base(self, target: CloneTarget) -> None:
        assert await target.base(DIGEST, "raw") is None
        assert list(await target.recover(frozenset())) == [], "the rollback was incomplete"
