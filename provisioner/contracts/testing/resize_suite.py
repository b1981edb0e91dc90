"""The part of the conformance suite for block targets that grows volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import NoSpaceError, NotFoundError, ResizeError, VolumeInUseError
from provisioner.contracts.target import BlockTarget
from provisioner.contracts.testing.steps import a_request, raises
from provisioner.contracts.testing.volume_access import VolumeAccess
from provisioner.contracts.types import MIB, StageRequest, Volume

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

_FIRST = b"first"


class ResizeConformance(VolumeAccess):
    """Tests of ``resize``, a part of ``BlockTargetConformance``.

    A target that does not override ``resize`` must only refuse it. Set ``resizes_online`` if the target can grow an
    open volume.
    """

    size = 8 * MIB
    resizes_online = False

    def make_target(self, folder: Path) -> BlockTarget:
        raise NotImplementedError

    def holding_open(self, target: BlockTarget, volume: Volume) -> AbstractAsyncContextManager[None]:
        raise NotImplementedError

    async def _provision(self, target: BlockTarget, request: StageRequest, data: bytes) -> Volume:
        raise NotImplementedError

    async def test_resize_grows_volume(self, tmp_path: Path) -> None:
        target, volume = await self._resizable(tmp_path)
        if volume is None:
            return
        grown = await target.resize("web01", 3 * self.size)
        assert grown.size_bytes >= 3 * self.size
        assert (grown.name, grown.path, grown.provenance) == (volume.name, volume.path, volume.provenance)
        for again in (target, self.make_target(tmp_path)):
            assert await again.find("web01") == grown
            assert list(await again.list()) == [grown]
        content = await self.read_volume(volume)
        assert len(content) == grown.size_bytes
        assert content.startswith(_FIRST)
        assert not any(content[volume.size_bytes :])
        assert list(await target.recover(frozenset())) == []

    async def test_resize_never_shrinks(self, tmp_path: Path) -> None:
        target, volume = await self._resizable(tmp_path)
        if volume is None:
            return
        with raises(ResizeError):
            await target.resize("web01", volume.size_bytes // 2)
        assert await target.find("web01") == volume

    async def test_resize_to_same_size(self, tmp_path: Path) -> None:
        """It changes nothing, so it succeeds even if the volume is open."""
        target, volume = await self._resizable(tmp_path)
        if volume is None:
            return
        async with self.holding_open(target, volume):
            assert await target.resize("web01", volume.size_bytes) == volume
        assert await target.find("web01") == volume

    async def test_resize_open_volume(self, tmp_path: Path) -> None:
        target, volume = await self._resizable(tmp_path)
        if volume is None:
            return
        async with self.holding_open(target, volume):
            with raises(VolumeInUseError):
                await target.resize("web01", 2 * self.size)
            assert await target.find("web01") == volume
            if self.resizes_online:
                grown = await target.resize("web01", 2 * self.size, online=True)
                assert grown.size_bytes >= 2 * self.size
                assert await target.find("web01") == grown
            else:
                with raises(VolumeInUseError):
                    await target.resize("web01", 2 * self.size, online=True)
        content = await self.read_volume(volume)
        assert content.startswith(_FIRST)
        assert not any(content[volume.size_bytes :])

    async def test_resize_without_space(self, tmp_path: Path) -> None:
        target, volume = await self._resizable(tmp_path)
        if volume is None:
            return
        with raises(NoSpaceError):
            await target.resize("web01", 2 * (await target.capacity()).total_bytes)
        assert await target.find("web01") == volume
        assert list(await target.recover(frozenset())) == []

    async def test_resize_in_cancelled_task(self, tmp_path: Path) -> None:
        target, volume = await self._resizable(tmp_path)
        if volume is None:
            return
        with trio.CancelScope() as scope:
            scope.cancel()
            await target.resize("web01", 2 * self.size)
        assert scope.cancelled_caught
        assert await target.find("web01") == volume
        assert list(await target.recover(frozenset())) == []

    async def test_resize_unknown_volume(self, tmp_path: Path) -> None:
        target, _ = await self._resizable(tmp_path)
        with raises(NotFoundError, ResizeError):
            await target.resize("web02", 2 * self.size)

    async def _resizable(self, folder: Path) -> tuple[BlockTarget, Volume | None]:
        """Return a target with the volume web01; None instead of the volume if the target cannot resize."""
        target = self.make_target(folder)
        volume = await self._provision(target, a_request("web01", self.size), _FIRST)
        if type(target).resize is not BlockTarget.resize:
            return target, volume
        with raises(ResizeError):
            await target.resize("web01", 2 * self.size)
        return target, None
