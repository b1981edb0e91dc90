# ruff: noqa: ASYNC230, ASYNC240 - small files of a test, on a local disk
"""The conformance suite for block targets."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.cancel_shield import shielded
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNameError,
)
from provisioner.contracts.source import pwrite_all
from provisioner.contracts.testing.resize_suite import ResizeConformance
from provisioner.contracts.testing.steps import a_request, raises
from provisioner.contracts.types import MIB, Device, Placement, StageRequest, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from provisioner.contracts.target import BlockTarget, StagedVolume

DIGEST = "sha256:" + "ab" * 32


class BlockTargetConformance(ResizeConformance):
    """Conformance tests for a block target. Subclass it as ``Test...`` and override ``make_target``.

    The target must replace volumes by swapping. The suite uses the volumes ``web01`` and ``web02`` of ``size`` bytes.
    The tests of races with an open repeat it ``tries`` times. ``ResizeConformance`` has the tests of growing volumes.
    """

    size = 8 * MIB
    tries = 3
    bad_names: Iterable[str] = ("", ".", "..", "a/b", "../up", "-rf", "new\nline", "nul\0", "a b", "x" * 300, "ü")

    def make_target(self, folder: Path) -> BlockTarget:
        """Return a target. Another call with the same folder simulates a restart of the service."""
        raise NotImplementedError

    def make_foreign_target(self, folder: Path) -> BlockTarget | None:  # noqa: ARG002
        """Return a target for the same place, as another installation with its own state directory would create it.

        Return None if the target does not distinguish installations.
        """
        return None

    @asynccontextmanager
    async def holding_open(self, target: BlockTarget, volume: Volume) -> AsyncIterator[None]:  # noqa: ARG002
        """Keep ``volume`` open in another process."""
        with Path(volume.path).open("rb") as file:
            child = await trio.lowlevel.open_process(["tail", "-f", "/dev/null"], stdin=file)
        try:
            yield
        finally:
            child.kill()
            with shielded("end the process that has the volume open", 30):
                await child.wait()

    @asynccontextmanager
    async def opening_midway(self, target: BlockTarget, volume: Volume) -> AsyncIterator[None]:
        """Open ``volume`` at the worst moment: after the last check of ``target``, before its first change.

        The volume is closed when the block ends. By default it is open all the time; override this with a hook in the
        target.
        """
        async with self.holding_open(target, volume):
            yield

    async def test_commit_publishes_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        volume = await self._provision(target, a_request("web01", self.size), b"first")
        assert (volume.name, volume.target) == ("web01", target.name)
        assert volume.size_bytes >= self.size
        assert await self.head(volume) == b"first"
        assert volume.provenance is not None
        assert (volume.provenance.job_id, volume.provenance.image_digest) == ("job-1", DIGEST)

    async def test_find_and_list_after_restart(self, tmp_path: Path) -> None:
        volume = await self._provision(self.make_target(tmp_path), a_request("web01", self.size), b"first")
        for target in (self.make_target(tmp_path), self.make_target(tmp_path)):
            assert await target.find("web01") == volume
            assert list(await target.list()) == [volume]
            assert await target.find("web02") is None

    async def test_stage_is_invisible(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        async with target.stage(a_request("web01", self.size), verified=True) as staged:
            assert staged.device.size_bytes >= self.size
            assert await target.find("web01") is None
            assert list(await target.list()) == []

    async def test_stage_reads_zero(self, tmp_path: Path) -> None:
        async with self.make_target(tmp_path).stage(a_request("web01", self.size), verified=True) as staged:
            if staged.device.reads_zero:
                assert not any(Path(staged.device.path).read_bytes())

    async def test_stage_without_commit_rolls_back(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        before = await target.capacity()
        async with target.stage(a_request("web01", self.size), verified=True) as staged:
            pass
        await self._assert_untouched(target, staged)
        # Others may use the place too, so its size is not the same to the byte.
        assert abs((await target.capacity()).total_bytes - before.total_bytes) < self.size

    async def test_stage_error_rolls_back(self, tmp_path: Path) -> None:
        target, seen = self.make_target(tmp_path), []
        with raises(ZeroDivisionError):
            async with target.stage(a_request("web01", self.size), verified=True) as staged:
                seen.append(staged)
                raise ZeroDivisionError
        await self._assert_untouched(target, seen[0])

    async def test_stage_cancel_rolls_back(self, tmp_path: Path) -> None:
        target, seen = self.make_target(tmp_path), []
        with trio.CancelScope() as scope:
            async with target.stage(a_request("web01", self.size), verified=True) as staged:
                seen.append(staged)
                scope.cancel()
                await trio.sleep_forever()
        await self._assert_untouched(target, seen[0])

    async def test_stage_in_cancelled_task(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with target.stage(a_request("web01", self.size), verified=True):
                raise AssertionError("a cancelled job must not stage a volume")
        await self._assert_untouched(target, None)

    async def test_replace_swaps_at_commit(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        request = a_request("web01", self.size, "job-2")
        assert await target.placement(request) is Placement.SWAP
        async with target.stage(request, verified=False) as staged:
            fill(staged.device, b"new")
            assert await target.find("web01") == old
            assert await self.head(old) == b"old"
            new = await staged.commit(DIGEST)
        assert await self.head(new) == b"new"
        assert list(await target.list()) == [new]

    async def test_replace_failure_keeps_old_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        with raises(ZeroDivisionError):
            async with target.stage(a_request("web01", self.size, "job-2"), verified=True) as staged:
                fill(staged.device, b"new")
                raise ZeroDivisionError
        assert await target.find("web01") == old
        assert await self.head(old) == b"old"

    async def test_replace_open_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        request = a_request("web01", self.size, "job-2")
        async with self.holding_open(target, old):
            with raises(VolumeInUseError):
                await target.placement(request)
            with raises(VolumeInUseError):
                async with target.stage(request, verified=True):
                    raise AssertionError("an open volume must not be replaced")
        assert await self.head(old) == b"old"

    async def test_commit_over_volume_opened_meanwhile(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        async with target.stage(a_request("web01", self.size, "job-2"), verified=True) as staged:  # noqa: SIM117
            async with self.holding_open(target, old):
                with raises(VolumeInUseError):
                    await staged.commit(DIGEST)
        assert await target.find("web01") == old
        assert await self.head(old) == b"old"

    async def test_commit_races_with_open(self, tmp_path: Path) -> None:
        """The last check and the swap are one step: if a process opens the volume in between, it is not replaced."""
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        for _ in range(self.tries):
            async with target.stage(a_request("web01", self.size, "job-2"), verified=True) as staged:
                fill(staged.device, b"new")
                async with self.opening_midway(target, old):
                    with raises(VolumeInUseError):
                        await staged.commit(DIGEST)
                    assert await target.find("web01") == old
            assert await self.head(old) == b"old"
            assert list(await target.recover(frozenset())) == []
        new = await self._provision(target, a_request("web01", self.size, "job-2"), b"new")
        assert await self.head(new) == b"new"

    async def test_remove_races_with_open(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        volume = await self._provision(target, a_request("web01", self.size), b"old")
        for _ in range(self.tries):
            async with self.opening_midway(target, volume):
                with raises(VolumeInUseError):
                    await target.remove("web01")
                assert await target.find("web01") == volume
            assert await self.head(volume) == b"old"
            assert list(await target.recover(frozenset())) == []
        await target.remove("web01")
        assert await target.find("web01") is None

    async def test_recover_other_installation(self, tmp_path: Path) -> None:
        """The other installation's job may continue. Only ``take_over``, which an administrator requests, ends it."""
        first = self.make_target(tmp_path)
        abandoned = first.stage(a_request("web01", self.size), verified=True)
        staged = await abandoned.__aenter__()
        await first.aclose()  # its daemon is down, and the job continues after the restart
        other = self.make_foreign_target(tmp_path)
        if other is not None:
            (sentence,) = await other.recover(frozenset())
            assert "another installation" in sentence
            assert await self.is_staged(staged)
            assert len(await other.take_over()) == 1
            assert list(await other.recover(frozenset())) == []
            assert not await self.is_staged(staged)
            await other.aclose()
        await abandoned.__aexit__(None, None, None)

    async def test_stage_two_volumes_concurrently(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        async with target.stage(a_request("web01", self.size), verified=True) as one:
            async with target.stage(a_request("web02", self.size, "job-2"), verified=True) as two:
                fill(one.device, b"one")
                fill(two.device, b"two")
                second = await two.commit(DIGEST)
            first = await one.commit(None)
        assert (await self.head(first), await self.head(second)) == (b"one", b"two")
        assert sorted(volume.name for volume in await target.list()) == ["web01", "web02"]

    async def test_remove_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        volume = await self._provision(target, a_request("web01", self.size), b"first")
        async with self.holding_open(target, volume):
            with raises(VolumeInUseError):
                await target.remove("web01")
        assert await target.find("web01") == volume
        await target.remove("web01")
        assert await target.find("web01") is None
        assert list(await target.list()) == []
        with raises(NotFoundError):
            await target.remove("web01")

    async def test_recover_removes_stages_of_dead_jobs(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        kept = await self._provision(target, a_request("web01", self.size), b"kept")
        abandoned = target.stage(a_request("web02", self.size, "job-dead"), verified=True)
        staged = await abandoned.__aenter__()  # simulate a power failure
        restarted = self.make_target(tmp_path)
        assert list(await restarted.recover(frozenset({"job-dead"}))) == []
        assert await self.is_staged(staged)
        assert len(await restarted.recover(frozenset())) == 1
        assert list(await restarted.recover(frozenset())) == []
        assert not await self.is_staged(staged)
        assert list(await restarted.list()) == [kept]
        assert await self.head(kept) == b"kept"
        await abandoned.__aexit__(None, None, None)  # the rollback of the dead job finds nothing to do

    async def test_invalid_volume_names(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        target.check_name("web01")
        for name in self.bad_names:
            with raises(VolumeNameError) as caught:
                target.check_name(name)
            assert "\n" not in str(caught.value)
            with raises(VolumeNameError, VolumeExistsError):
                await target.placement(a_request(name, self.size))

    async def test_placement_without_space(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        capacity = await target.capacity()
        assert 0 <= capacity.free_bytes <= capacity.total_bytes
        with raises(NoSpaceError):
            await target.placement(a_request("web01", 2 * capacity.total_bytes))
        assert await target.placement(a_request("web01", self.size)) is Placement.NEW

    async def _provision(self, target: BlockTarget, request: StageRequest, data: bytes) -> Volume:
        async with target.stage(request, verified=True) as staged:
            fill(staged.device, data)
            return await staged.commit(DIGEST)

    async def _assert_untouched(self, target: BlockTarget, staged: StagedVolume | None) -> None:
        assert await target.find("web01") is None
        assert list(await target.list()) == []
        assert list(await target.recover(frozenset())) == [], "the rollback was incomplete"
        assert staged is None or not await self.is_staged(staged)


def fill(device: Device, data: bytes) -> None:
    """Write ``data`` at the start of ``device``, as a converter would."""
    fd = os.open(device.path, os.O_RDWR)
    try:
        pwrite_all(fd, data.ljust(4096, b"\0"), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
