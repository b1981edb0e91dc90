"""Copies an image onto a volume as the core does: convert, zero the tail, commit."""

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
    """Return a raw image with holes that ends in the middle of an extent, and the same image as qcow2."""
    raw, qcow2 = folder / "disk.raw", folder / "disk.qcow2"
    with raw.open("wb") as file:
        for start in (0, 5 * harness.MIB + 4096, 12 * harness.MIB, size - 1536):
            file.seek(start)
            file.write(os.urandom(1536))
        file.truncate(size)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)], check=True)
    return raw, qcow2


async def copy(image: Path, device: Device, virtual_size: int | None = None) -> None:
    """Copy the image to the device, and zero the rest if the device asks for it."""
    converter = NativeConverter(NativeSettings(), BackEndContext("native", image.parent))
    with FileView(image, image.suffix[1:], virtual_size) as view:
        await converter.convert(view, device, lambda _: None)
        if not device.reads_zero and device.zero_tail:
            await trio.to_thread.run_sync(zero_tail, device.path, view.virtual_size)
    await converter.aclose()


def zero_tail(path: str, start: int) -> None:
    """Zero the device from ``start`` to its end, as the core does."""
    fd = os.open(path, os.O_RDWR)
    try:
        blockdev.zero_range(fd, start, blockdev.device_size(fd))
        os.fsync(fd)
    finally:
        os.close(fd)


async def fill(staged: StagedVolume, data: bytes, digest: str | None = harness.DIGEST) -> Volume:
    """Write some bytes to the start of the volume instead of an image, and commit."""
    await trio.to_thread.run_sync(harness.write, staged.device.path, data)
    return await staged.commit(digest)
