# ruff: noqa: ASYNC230, ASYNC240 - small files of a test, on a local disk
"""What every block target must pass."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNameError,
)
from provisioner.contracts.shield import shielded
from provisioner.contracts.source import pwrite_all
from provisioner.contracts.testing.steps import a_request, raises
from provisioner.contracts.types import MIB, Device, Placement, StageRequest, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from provisioner.contracts.target import BlockTarget

DIGEST = "sha256:" + "ab" * 32


class BlockTargetConformance:
    """Subclass it, override ``make_target``, name the subclass ``Test...``.

    The target made must replace by swapping. The suite uses volumes ``web01`` and ``web02`` of ``size`` bytes.
    ``tries`` is how often a volume is opened at the worst moment.
    """

    size = 8 * MIB
    tries = 3
    bad_names: Iterable[str] = ("", ".", "..", "a/b", "../up", "-rf", "new\nline", "nul\0", "a b", "x" * 300, "ü")

    def make_target(self, folder: Path) -> BlockTarget:
        """A target; called again with the same folder it is the same place after a restart of the service."""
        raise NotImplementedError

    def make_foreign_target(self, folder: Path) -> BlockTarget | None:  # noqa: ARG002
        """The same place as another installation works on it: with another state directory.

        None if the target does not tell installations apart.
        """
        return None

    @asynccontextmanager
    async def holding_open(self, target: BlockTarget, volume: Volume) -> AsyncIterator[None]:  # noqa: ARG002
        """Have ``volume`` open as another process would."""
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
        """Have ``volume`` opened at the worst moment: after ``target`` last saw it closed, before it changes anything.

        The open ends with the block. Override it, with a gate in the target; by default the volume is open all along.
        """
        async with self.holding_open(target, volume):
            yield

    async def test_a_committed_volume_stands_under_its_name(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        volume = await self._provision(target, a_request("web01", self.size), b"first")
        assert (volume.name, volume.target) == ("web01", target.name)
        assert volume.size_bytes >= self.size
        assert head(volume.path) == b"first"
        assert volume.provenance is not None
        assert (volume.provenance.job_id, volume.provenance.image_digest) == ("job-1", DIGEST)

    async def test_find_and_list_know_it_also_after_a_restart(self, tmp_path: Path) -> None:
        volume = await self._provision(self.make_target(tmp_path), a_request("web01", self.size), b"first")
        for target in (self.make_target(tmp_path), self.make_target(tmp_path)):
            assert await target.find("web01") == volume
            assert list(await target.list()) == [volume]
            assert await target.find("web02") is None

    async def test_a_staged_volume_is_seen_by_nobody(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        async with target.stage(a_request("web01", self.size), verified=True) as staged:
            assert staged.device.size_bytes >= self.size
            assert await target.find("web01") is None
            assert list(await target.list()) == []

    async def test_what_is_said_to_read_zero_does(self, tmp_path: Path) -> None:
        async with self.make_target(tmp_path).stage(a_request("web01", self.size), verified=True) as staged:
            if staged.device.reads_zero:
                assert not any(Path(staged.device.path).read_bytes())

    async def test_leaving_without_a_commit_leaves_nothing(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        before = await target.capacity()
        async with target.stage(a_request("web01", self.size), verified=True) as staged:
            path = staged.device.path
        await self._assert_untouched(target, path)
        assert (await target.capacity()).total_bytes == before.total_bytes

    async def test_an_error_while_staged_leaves_nothing(self, tmp_path: Path) -> None:
        target, path = self.make_target(tmp_path), ""
        with raises(ZeroDivisionError):
            async with target.stage(a_request("web01", self.size), verified=True) as staged:
                path = staged.device.path
                raise ZeroDivisionError
        await self._assert_untouched(target, path)

    async def test_a_cancel_while_staged_leaves_nothing(self, tmp_path: Path) -> None:
        target, path = self.make_target(tmp_path), ""
        with trio.CancelScope() as scope:
            async with target.stage(a_request("web01", self.size), verified=True) as staged:
                path = staged.device.path
                scope.cancel()
                await trio.sleep_forever()
        await self._assert_untouched(target, path)

    async def test_a_cancel_before_it_is_staged_leaves_nothing(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        with trio.CancelScope() as scope:
            scope.cancel()
            async with target.stage(a_request("web01", self.size), verified=True):
                raise AssertionError("nothing may be staged for a cancelled job")
        await self._assert_untouched(target, None)

    async def test_replacing_swaps_at_the_commit_and_not_before(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        request = a_request("web01", self.size, "job-2")
        assert await target.placement(request) is Placement.SWAP
        async with target.stage(request, verified=False) as staged:
            fill(staged.device, b"new")
            assert await target.find("web01") == old
            assert head(old.path) == b"old"
            new = await staged.commit(DIGEST)
        assert head(new.path) == b"new"
        assert list(await target.list()) == [new]

    async def test_a_failed_replacement_keeps_the_old_volume(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        with raises(ZeroDivisionError):
            async with target.stage(a_request("web01", self.size, "job-2"), verified=True) as staged:
                fill(staged.device, b"new")
                raise ZeroDivisionError
        assert await target.find("web01") == old
        assert head(old.path) == b"old"

    async def test_an_open_volume_is_not_replaced(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        request = a_request("web01", self.size, "job-2")
        async with self.holding_open(target, old):
            with raises(VolumeInUseError):
                await target.placement(request)
            with raises(VolumeInUseError):
                async with target.stage(request, verified=True):
                    raise AssertionError("nothing may be staged over an open volume")
        assert head(old.path) == b"old"

    async def test_a_volume_opened_while_the_job_ran_is_not_replaced(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        async with target.stage(a_request("web01", self.size, "job-2"), verified=True) as staged:  # noqa: SIM117
            async with self.holding_open(target, old):
                with raises(VolumeInUseError):
                    await staged.commit(DIGEST)
        assert await target.find("web01") == old
        assert head(old.path) == b"old"

    async def test_an_opener_midway_keeps_the_volume(self, tmp_path: Path) -> None:
        """The last look and the swap are one: an opener that gets in between has the volume, and it stays."""
        target = self.make_target(tmp_path)
        old = await self._provision(target, a_request("web01", self.size), b"old")
        for _ in range(self.tries):
            async with target.stage(a_request("web01", self.size, "job-2"), verified=True) as staged:
                fill(staged.device, b"new")
                async with self.opening_midway(target, old):
                    with raises(VolumeInUseError):
                        await staged.commit(DIGEST)
                    assert await target.find("web01") == old
            assert head(old.path) == b"old"
            assert list(await target.recover(frozenset())) == []
        new = await self._provision(target, a_request("web01", self.size, "job-2"), b"new")
        assert head(new.path) == b"new"

    async def test_an_opener_midway_keeps_what_is_removed(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        volume = await self._provision(target, a_request("web01", self.size), b"old")
        for _ in range(self.tries):
            async with self.opening_midway(target, volume):
                with raises(VolumeInUseError):
                    await target.remove("web01")
                assert await target.find("web01") == volume
            assert head(volume.path) == b"old"
            assert list(await target.recover(frozenset())) == []
        await target.remove("web01")
        assert await target.find("web01") is None

    async def test_recovery_leaves_another_installations_stage(self, tmp_path: Path) -> None:
        """Its job may run on; only take_over, asked for by a person, ends that."""
        first = self.make_target(tmp_path)
        abandoned = first.stage(a_request("web01", self.size), verified=True)
        staged = await abandoned.__aenter__()
        await first.aclose()  # its daemon is down, and its job is to go on after the restart
        other = self.make_foreign_target(tmp_path)
        if other is not None:
            (sentence,) = await other.recover(frozenset())
            assert "another installation" in sentence
            assert Path(staged.device.path).exists()
            assert len(await other.take_over()) == 1
            assert list(await other.recover(frozenset())) == []
            assert not Path(staged.device.path).exists()
            await other.aclose()
        await abandoned.__aexit__(None, None, None)

    async def test_two_jobs_stage_side_by_side(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        async with target.stage(a_request("web01", self.size), verified=True) as one:
            async with target.stage(a_request("web02", self.size, "job-2"), verified=True) as two:
                fill(one.device, b"one")
                fill(two.device, b"two")
                second = await two.commit(DIGEST)
            first = await one.commit(None)
        assert (head(first.path), head(second.path)) == (b"one", b"two")
        assert sorted(volume.name for volume in await target.list()) == ["web01", "web02"]

    async def test_remove_takes_it_away(self, tmp_path: Path) -> None:
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

    async def test_recover_removes_what_dead_jobs_staged_and_nothing_else(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        kept = await self._provision(target, a_request("web01", self.size), b"kept")
        abandoned = target.stage(a_request("web02", self.size, "job-dead"), verified=True)
        staged = await abandoned.__aenter__()  # and the power goes
        restarted = self.make_target(tmp_path)
        assert list(await restarted.recover(frozenset({"job-dead"}))) == []
        assert Path(staged.device.path).exists()
        assert len(await restarted.recover(frozenset())) == 1
        assert list(await restarted.recover(frozenset())) == []
        assert not Path(staged.device.path).exists()
        assert list(await restarted.list()) == [kept]
        assert head(kept.path) == b"kept"
        await abandoned.__aexit__(None, None, None)  # the undo of the dead finds nothing to do

    async def test_names_it_cannot_have_are_refused(self, tmp_path: Path) -> None:
        target = self.make_target(tmp_path)
        target.check_name("web01")
        for name in self.bad_names:
            with raises(VolumeNameError) as caught:
                target.check_name(name)
            assert "\n" not in str(caught.value)
            with raises(VolumeNameError, VolumeExistsError):
                await target.placement(a_request(name, self.size))

    async def test_more_than_there_is_room_for_is_refused(self, tmp_path: Path) -> None:
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

    async def _assert_untouched(self, target: BlockTarget, staged_path: str | None) -> None:
        assert await target.find("web01") is None
        assert list(await target.list()) == []
        assert list(await target.recover(frozenset())) == [], "the undo left work for a recovery"
        assert staged_path is None or not Path(staged_path).exists()


def fill(device: Device, data: bytes) -> None:
    """Write ``data`` at the start of ``device``, as a converter would."""
    fd = os.open(device.path, os.O_RDWR)
    try:
        pwrite_all(fd, data.ljust(4096, b"\0"), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def head(path: str) -> bytes:
    """The bytes ``fill`` wrote."""
    with Path(path).open("rb") as file:
        return file.read(4096).rstrip(b"\0")
