# ruff: noqa: ASYNC240 - small files of a test, on a local disk
"""What every converter must pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trio.testing

from provisioner.contracts.errors import ProvisionerError, RemoteUnavailableError
from provisioner.contracts.testing.steps import raises
from provisioner.contracts.testing.views import ArrivingView, FileView
from provisioner.contracts.types import MIB, Device

if TYPE_CHECKING:
    from provisioner.contracts.converter import Converter

_STALE = 0xA5


class ConverterConformance:
    """Subclass it, override ``make_converter`` and ``make_images``, name the subclass ``Test...``.

    Devices are files here; a converter's own tests add block devices.
    """

    virtual_size = 8 * MIB
    content = (bytes(range(256)) * 256 + bytes(3 * 65536)) * 16 + bytes(4 * MIB)
    """``virtual_size`` bytes: data, holes between, and zeros at the end."""

    def make_converter(self) -> Converter:
        """A converter, as the daemon would make it."""
        raise NotImplementedError

    def make_images(self, folder: Path) -> list[tuple[Path, str]]:
        """Write images that hold ``content`` into ``folder``: (path, format), at least one of each format."""
        raise NotImplementedError

    async def test_the_device_holds_the_image(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size)
            await self._convert(path, kind, device)
            assert Path(device.path).read_bytes() == self.content, kind

    async def test_zeros_of_the_image_cover_what_was_there(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size, stale=True)
            await self._convert(path, kind, device)
            assert Path(device.path).read_bytes() == self.content, kind

    async def test_nothing_past_the_image_is_written(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size + MIB, stale=True)
            await self._convert(path, kind, device)
            data = Path(device.path).read_bytes()
            assert data == self.content + bytes([_STALE]) * MIB, kind

    async def test_progress_never_falls_and_ends_within_the_image(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            done = await self._convert(path, kind, make_device(tmp_path, self.virtual_size))
            assert done == sorted(done), kind
            assert 0 < done[-1] <= self.virtual_size, kind

    async def test_a_device_that_is_too_small_is_an_error(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            with raises(ProvisionerError):
                await self._convert(path, kind, make_device(tmp_path, self.virtual_size // 2))

    async def test_an_image_cut_short_is_an_error(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            os.truncate(path, path.stat().st_size // 3)
            with raises(ProvisionerError):
                await self._convert(path, kind, make_device(tmp_path, self.virtual_size))

    async def test_a_cancel_ends_all_of_it(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size, stale=True)
            with FileView(path, kind, self.virtual_size) as view, trio.CancelScope() as scope:
                scope.cancel()
                await self.make_converter().convert(view, device, lambda _: None)
            assert scope.cancelled_caught, kind
            assert openers(device.path) == [], kind

    async def test_a_streaming_converter_follows_what_arrives(self, tmp_path: Path) -> None:
        for path, kind in self._streamed(tmp_path):
            device = make_device(tmp_path, self.virtual_size, stale=True)
            with ArrivingView(tmp_path / "arriving", path.read_bytes(), kind, self.virtual_size) as view:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.make_converter().convert, view, device, lambda _: None)
                    while view.available < view.size:
                        await trio.testing.wait_all_tasks_blocked()
                        view.feed(1 + view.size // 7)
            assert Path(device.path).read_bytes() == self.content, kind

    async def test_a_streaming_converter_ends_with_the_download(self, tmp_path: Path) -> None:
        for path, kind in self._streamed(tmp_path):
            device = make_device(tmp_path, self.virtual_size)
            with ArrivingView(tmp_path / "arriving", path.read_bytes(), kind, self.virtual_size) as view:
                view.feed(view.size // 2)
                view.fail(RemoteUnavailableError("the transfer broke"))
                with raises(RemoteUnavailableError):
                    await self.make_converter().convert(view, device, lambda _: None)
            assert openers(device.path) == [], kind

    async def test_a_streaming_converter_can_be_cancelled_while_it_waits(self, tmp_path: Path) -> None:
        for path, kind in self._streamed(tmp_path):
            device = make_device(tmp_path, self.virtual_size)
            with ArrivingView(tmp_path / "arriving", path.read_bytes(), kind, self.virtual_size) as view:
                view.feed(view.size // 2)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.make_converter().convert, view, device, lambda _: None)
                    await view.starved()
                    nursery.cancel_scope.cancel()
            assert openers(device.path) == [], kind

    def _streamed(self, folder: Path) -> list[tuple[Path, str]]:
        return self.make_images(folder) if self.make_converter().streams else []

    async def _convert(self, path: Path, kind: str, device: Device) -> list[int]:
        done: list[int] = []
        with FileView(path, kind, self.virtual_size) as view:
            await self.make_converter().convert(view, device, done.append)
        assert openers(device.path) == [], f"{kind}: the device is still open"
        return done


def make_device(folder: Path, size: int, *, stale: bool = False) -> Device:
    """A new file of ``size`` bytes as a device: all zero, or full of another's bytes."""
    path = folder / "device"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes([_STALE]) * size if stale else bytes(size))
    return Device(str(path), size, reads_zero=not stale)


def openers(path: str) -> list[int]:
    """Ids of the processes that have the file at ``path`` open, this one included."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if fd.samefile(path):
                found.append(int(fd.parts[2]))
        except OSError:
            continue
    return found
