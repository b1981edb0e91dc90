"""An image copied onto a volume in the tests as the core does it: convert, zero the tail, commit."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import trio

from lvp_convert_native import NativeConverter, NativeSettings
from provisioner.contracts import BackEndContext, blockdev
from provisioner.contracts.testing import FileView
from tests.guest.lvm import harness

if TYPE_CHECKING:
    from pathlib import Path

    from provisioner.contracts import Device, StagedVolume, Volume


def make_images(folder: Path, size: int = 20 * harness.MIB + 3 * 512) -> tuple[Path, Path]:
    """A raw image with holes that ends in the midst of an extent, and the same as qcow2."""
    raw, qcow2 = folder / "disk.raw", folder / "disk.qcow2"
    with raw.open("wb") as file:
        for start in (0, 5 * harness.MIB + 4096, 12 * harness.MIB, size - 1536):
            file.seek(start)
            file.write(os.urandom(1536))
        file.truncate(size)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)], check=True)
    return raw, qcow2


async def copy(image: Path, device: Device, virtual_size: int | None = None) -> None:
    """Make the device the image, and zeros after it where they are asked for."""
    converter = NativeConverter(NativeSettings(), BackEndContext("native", image.parent))
    with FileView(image, image.suffix[1:], virtual_size) as view:
        await converter.convert(view, device, lambda _: None)
        if not device.reads_zero and device.zero_tail:
            await trio.to_thread.run_sync(zero_tail, device.path, view.virtual_size)
    await converter.aclose()


def zero_tail(path: str, start: int) -> None:
    """As the core does."""
    fd = os.open(path, os.O_RDWR)
    try:
        blockdev.zero_range(fd, start, blockdev.device_size(fd))
        os.fsync(fd)
    finally:
        os.close(fd)


async def fill(staged: StagedVolume, data: bytes, digest: str | None = harness.DIGEST) -> Volume:
    """Some bytes at the start instead of an image, and the commit."""
    await trio.to_thread.run_sync(harness.write, staged.device.path, data)
    return await staged.commit(digest)
