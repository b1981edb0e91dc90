# ruff: noqa: ASYNC240 - small files of a test, on a local disk
"""The conformance suite for converters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio
import trio.testing

from provisioner.contracts.errors import ProvisionerError, RemoteUnavailableError
from provisioner.contracts.testing.image_views import ArrivingView, FileView
from provisioner.contracts.testing.steps import raises
from provisioner.contracts.types import MIB, Device

if TYPE_CHECKING:
    from provisioner.contracts.converter import Converter

_STALE = 0xA5


class ConverterConformance:
    """Tests for a converter: subclass it as ``Test...`` and override ``make_converter`` and ``make_images``.

    The devices are files; the converter's own tests should add block devices.
    """

    virtual_size = 8 * MIB
    content = (bytes(range(256)) * 256 + bytes(3 * 65536)) * 16 + bytes(4 * MIB)
    """``virtual_size`` bytes: data with holes in between, and zeros at the end."""

    def make_converter(self) -> Converter:
        """Return a converter as the daemon would create it."""
        raise NotImplementedError

    def make_images(self, folder: Path) -> list[tuple[Path, str]]:
        """Write images of ``content`` to ``folder``, at least one of each format; return (path, format) pairs."""
        raise NotImplementedError

    async def test_convert_to_zeroed_device(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size)
            await self._convert(path, kind, device)
            assert Path(device.path).read_bytes() == self.content, kind

    async def test_convert_overwrites_stale_data(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size, stale=True)
            await self._convert(path, kind, device)
            assert Path(device.path).read_bytes() == self.content, kind

    async def test_convert_keeps_bytes_past_image(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size + MIB, stale=True)
            await self._convert(path, kind, device)
            data = Path(device.path).read_bytes()
            assert data == self.content + bytes([_STALE]) * MIB, kind

    async def test_convert_progress_is_monotonic(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            done = await self._convert(path, kind, make_device(tmp_path, self.virtual_size))
            assert done == sorted(done), kind
            assert 0 < done[-1] <= self.virtual_size, kind

    async def test_convert_device_too_small(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            with raises(ProvisionerError):
                await self._convert(path, kind, make_device(tmp_path, self.virtual_size // 2))

    async def test_convert_truncated_image(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            os.truncate(path, path.stat().st_size // 3)
            with raises(ProvisionerError):
                await self._convert(path, kind, make_device(tmp_path, self.virtual_size))

    async def test_convert_cancelled(self, tmp_path: Path) -> None:
        for path, kind in self.make_images(tmp_path):
            device = make_device(tmp_path, self.virtual_size, stale=True)
            with FileView(path, kind, self.virtual_size) as view, trio.CancelScope() as scope:
                scope.cancel()
                await self.make_converter().convert(view, device, lambda _: None)
            assert scope.cancelled_caught, kind
            assert openers(device.path) == [], kind

    async def test_streaming_during_download(self, tmp_path: Path) -> None:
        for path, kind in self._streamed(tmp_path):
            device = make_device(tmp_path, self.virtual_size, stale=True)
            with ArrivingView(tmp_path / "arriving", path.read_bytes(), kind, self.virtual_size) as view:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.make_converter().convert, view, device, lambda _: None)
                    while view.available < view.size:
                        await trio.testing.wait_all_tasks_blocked()
                        view.feed(1 + view.size // 7)
            assert Path(device.path).read_bytes() == self.content, kind

    async def test_streaming_failed_download(self, tmp_path: Path) -> None:
        for path, kind in self._streamed(tmp_path):
            device = make_device(tmp_path, self.virtual_size)
            with ArrivingView(tmp_path / "arriving", path.read_bytes(), kind, self.virtual_size) as view:
                view.feed(view.size // 2)
                view.fail(RemoteUnavailableError("the transfer broke"))
                with raises(RemoteUnavailableError):
                    await self.make_converter().convert(view, device, lambda _: None)
            assert openers(device.path) == [], kind

    async def test_streaming_cancelled_while_waiting(self, tmp_path: Path) -> None:
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
    """Create a file of ``size`` bytes as a device, filled with zeros or with stale data."""
    path = folder / "device"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes([_STALE]) * size if stale else bytes(size))
    return Device(str(path), size, reads_zero=not stale)


def openers(path: str) -> list[int]:
    """Return the ids of the processes that have ``path`` open, including this one."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if fd.samefile(path):
                found.append(int(fd.parts[2]))
        except OSError:
            continue
    return found
