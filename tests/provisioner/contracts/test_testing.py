# ruff: noqa: ASYNC240 - small files of a test
"""The fakes pass the conformance suites, so the suites can pass and the fakes implement the interfaces."""

from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from provisioner.contracts import Duration, ImageUrl, KeepingSettings
from provisioner.contracts.errors import CorruptImageError, RemoteChangedError, RollbackError
from provisioner.contracts.testing import (
    ArrivingView,
    BlockTargetConformance,
    CloneTargetConformance,
    ConverterConformance,
    FakeCloneTarget,
    FakeConverter,
    FakeImage,
    FakeKeepingTarget,
    FakeSource,
    FakeTarget,
    KeepingTargetConformance,
    SourceConformance,
    a_provenance,
    a_request,
    raises,
)
from provisioner.contracts.types import MIB, StageRequest

URL = "https://images.example.com/disk.raw"


class TestFakeSourceConforms(SourceConformance):
    @asynccontextmanager
    async def serve(self, content):
        yield FakeSource({URL: content}), URL


class TestFakeSourceWithoutRangesConforms(SourceConformance):
    @asynccontextmanager
    async def serve(self, content):
        yield FakeSource({URL: FakeImage(content, version=None, size=None, accepts_ranges=False)}), URL


class TestFakeConverterConforms(ConverterConformance):
    def make_converter(self):
        return FakeConverter()

    def make_images(self, folder: Path):
        (folder / "image.raw").write_bytes(self.content)
        return [(folder / "image.raw", "raw")]


class FakeTargetConformance(BlockTargetConformance):
    resizes_online = True

    @asynccontextmanager
    async def holding_open(self, target, volume):
        target.in_use.add(volume.name)
        yield
        target.in_use.remove(volume.name)

    @asynccontextmanager
    async def opening_midway(self, target, volume):
        async def open_it():
            target.in_use.add(volume.name)

        target.steps.act_at = {"commit": open_it, "remove": open_it}
        yield
        target.steps.act_at = {}
        target.in_use.remove(volume.name)


class TestFakeTargetConforms(FakeTargetConformance):
    def make_target(self, folder: Path):
        return FakeTarget(folder, owner="a")

    def make_foreign_target(self, folder: Path):
        return FakeTarget(folder, owner="b")


class TestStaleFakeTargetConforms(FakeTargetConformance):
    def make_target(self, folder: Path):
        return FakeCloneTarget(folder, stale=True, owner="a")

    def make_foreign_target(self, folder: Path):
        return FakeCloneTarget(folder, stale=True, owner="b")


class TestFakeCloneTargetClones(CloneTargetConformance):
    holding_open = FakeTargetConformance.holding_open

    def make_target(self, folder: Path):
        return FakeCloneTarget(folder)

    async def remove_base(self, target, base):
        (target._base_folder() / base.name).unlink()


class TestFakeKeepingTargetConforms(FakeTargetConformance):
    def make_target(self, folder: Path):
        return FakeKeepingTarget(folder, owner="a", keeping=KeepingSettings(keep_replaced=Duration(60)))

    def make_foreign_target(self, folder: Path):
        return FakeKeepingTarget(folder, owner="b")


class TestFakeKeepingTargetKeeps(KeepingTargetConformance):
    holding_open = FakeTargetConformance.holding_open

    def make_target(self, folder: Path, **settings):
        return FakeKeepingTarget(folder, keeping=KeepingSettings(**settings))

    async def make_foreign_volume(self, folder: Path, name, data):
        (folder / name).write_bytes(data.ljust(self.size, b"\0"))


@pytest.mark.parametrize("step", ["placement", "stage", "staged"])
async def test_fake_target_cancelled_while_hanging(tmp_path, step):
    target = FakeTarget(tmp_path, hang_at=step)

    async def stage():
        async with target.stage(a_request(), verified=True):
            raise AssertionError("this is never reached")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage)
        await target.steps.reached.wait()
        nursery.cancel_scope.cancel()
    assert target.leftovers() == []


async def test_fake_target_undo_timeout(tmp_path, autojump_clock):
    target = FakeTarget(tmp_path, hang_at="undo")
    with raises(RollbackError):
        async with target.stage(a_request(), verified=True):
            pass
    assert target.leftovers() == ["job-1~web01"]


async def test_fake_clone_target_clones_base(tmp_path):
    target = FakeCloneTarget(tmp_path)
    digest = "sha256:" + "0" * 64
    assert await target.base(digest, "raw") is None
    async with target.stage_base(StageRequest("raw", MIB, a_provenance(image_digest=digest))) as staged:
        Path(staged.device.path).write_bytes(b"x" * MIB)
        await staged.commit(digest)
    base = await target.base(digest, "raw")
    assert base is not None
    async with target.stage_clone(base, a_request(size_bytes=2 * MIB)) as staged:
        volume = await staged.commit(digest)
    assert Path(volume.path).read_bytes() == b"x" * MIB + bytes(MIB)
    assert [volume.name for volume in await target.list()] == ["web01"]


async def test_fake_source_image_changes_midway():
    source = FakeSource({URL: bytes(MIB)}, at_byte=MIB // 2, change_to=FakeImage(b"other", version="2"))
    with raises(RemoteChangedError):
        async with source.open(ImageUrl.parse(URL)) as stream:
            async for _ in stream:
                pass
    assert 0 < source.bytes_given <= MIB // 2
    assert source.open_now == 0


def test_fake_source_unknown_step():
    with raises(ValueError):
        FakeSource({}, hang_at="stats")


async def test_arriving_view_range_past_end(tmp_path):
    with ArrivingView(tmp_path / "x", b"abc") as view:
        view.feed()
        await view.arrived(0, 3)
        with raises(CorruptImageError):
            await view.arrived(2, 4)


def test_raises_without_exception():
    with pytest.raises(AssertionError, match="KeyError was not raised"), raises(KeyError):
        pass
