"""Fixed VHDs: the disk is written, the footer is not, and it does not count for the volume's size."""

import gzip
import hashlib
import random
import struct
import subprocess
from pathlib import Path

import msgspec
import pytest

from provisioner.contracts import GIB, MIB, Checksum
from provisioner.contracts.testing import FakeCloneTarget, FakeConverter, FakeSource, FakeTarget
from provisioner.download.vhd_footer import FOOTER, disk_bytes, may_have_footer
from provisioner.jobs import Status
from tests.cancellation.harness import SPEC, URL, Harness
from tests.contents import first_bytes

DISK = random.Random(5).randbytes(300 * 1024)


def footer(size=300 * 1024, kind=2, cookie=b"conectix"):
    made = bytearray(FOOTER)
    made[:8], made[48:56], made[60:64] = cookie, struct.pack(">Q", size), struct.pack(">I", kind)
    made[64:68] = struct.pack(">I", sum(made) ^ 0xFFFFFFFF)
    return bytes(made)


VHD = DISK + footer()


def asking_for(image, **more):
    checksum = Checksum("sha256", hashlib.sha256(image).hexdigest())
    return msgspec.structs.replace(SPEC, checksum=checksum, **more)


@pytest.mark.parametrize("options", [[], ["-o", "force_size=on"]], ids=["geometry", "force_size"])
def test_footer_by_qemu(tmp_path, options):
    (tmp_path / "raw").write_bytes(DISK)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed", *options, "raw", "vhd"]
    subprocess.run(command, check=True, cwd=tmp_path)
    image = (tmp_path / "vhd").read_bytes()
    assert disk_bytes(image[-FOOTER:], len(image)) == len(image) - FOOTER
    assert image.startswith(DISK)


@pytest.mark.parametrize(
    "end",
    [
        footer(cookie=b"conectiy"), footer(kind=3), footer(size=len(DISK) - 512), footer()[:-1] + b"x", footer()[1:],
        bytes(FOOTER), b"",
    ],
    ids=["cookie", "dynamic", "another-size", "checksum", "short", "zeros", "empty"],
)  # fmt: skip
def test_footer_of_another_kind(end):
    assert disk_bytes(end, len(VHD)) == len(VHD)


def test_may_have_footer():
    assert may_have_footer("ubuntu.vhd", None)
    assert may_have_footer("disk.VHD", 5)
    assert may_have_footer("disk.raw", 30 * GIB + 512)
    assert not may_have_footer("disk.raw", 30 * GIB)
    assert not may_have_footer("disk.raw", None)


@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
async def test_footer_that_was_converted(folder, stale):
    """Nothing tells it from a raw disk while it is converted during the download; it is erased before the commit."""
    target = FakeTarget(folder / "main", name="main", stale=stale)
    harness = Harness(folder, source=FakeSource({URL: VHD}), target=target)
    async with harness.running():
        for hit in (False, True):
            job = await harness.run(asking_for(VHD, size_bytes=16 * MIB))  # small: the rest is written as zeros
            assert (job.status, job.cache_hit) == (Status.COMPLETED, hit)
            volume = first_bytes(Path(job.volume.path), len(VHD) + 4096)
            assert volume == DISK.ljust(len(VHD) + 4096, b"\0")
        (entry,) = harness.cache.entries()
        assert (entry.size, entry.virtual_size) == (len(VHD), len(DISK))
        harness.assert_nothing_left()


async def test_footer_on_a_base(folder):
    harness = Harness(folder, source=FakeSource({URL: VHD}), target=FakeCloneTarget(folder / "main", name="main"))
    async with harness.running():
        job = await harness.run(asking_for(VHD))
        assert job.status is Status.COMPLETED
        assert first_bytes(Path(job.volume.path), len(VHD)) == DISK + bytes(FOOTER)


async def test_disk_as_large_as_the_volume(folder):
    """Azure's images are whole MiB with a footer behind."""
    packed = gzip.compress(bytes(4 * MIB) + footer(4 * MIB), 1)
    harness = Harness(folder, source=FakeSource({URL: packed}))
    async with harness.running():
        job = await harness.run(asking_for(packed, size_bytes=4 * MIB))
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert job.volume.size_bytes == 4 * MIB


@pytest.mark.parametrize("size_bytes", [GIB, 0])
async def test_declared_as_vpc(folder, size_bytes):
    harness = Harness(folder, source=FakeSource({URL: VHD}))
    converter = harness.back_ends.converters["vpc"] = FakeConverter()
    async with harness.running():
        job = await harness.run(asking_for(VHD, image_format="vpc", size_bytes=size_bytes))
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert "flush" in converter.steps.log


async def test_raw_declared_as_vpc(folder):
    harness = Harness(folder, source=FakeSource({URL: DISK}))
    harness.back_ends.converters["vpc"] = FakeConverter()
    async with harness.running():
        job = await harness.run(asking_for(DISK, image_format="vpc"))
        assert (job.status, "declared as vpc but is raw" in job.error) == (Status.FAILED, True)


async def test_waits_for_the_end_by_its_length(folder):
    """The length says that it may be a VHD as large as the volume: its end is awaited before the size is checked."""
    image = bytes(4 * MIB) + footer(4 * MIB)
    harness = Harness(folder, source=FakeSource({URL: image}))
    async with harness.running():
        job = await harness.run(asking_for(image, size_bytes=4 * MIB))
        assert (job.status, job.error) == (Status.COMPLETED, None)
