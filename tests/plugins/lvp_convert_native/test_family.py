"""Byte for byte what QEMU reads, over a family of images that its own tools made."""

import os
import random
import subprocess

import pytest

from provisioner.contracts import MIB
from provisioner.contracts.errors import CorruptImageError, ImageTooLargeError

pytestmark = pytest.mark.slow  # a hundred images made by qemu-img

PACKED = {"zlib": {"pack": True}, "zstd": {"pack": True}, "plain": {}}


@pytest.mark.parametrize("cluster_size", [512, 1024, 2048, 4096, 16384, 65536, 262144, 1048576, 2097152])
@pytest.mark.parametrize("kind", sorted(PACKED))
@pytest.mark.parametrize("stale", [False, True])
async def test_every_cluster_size_and_compression(bench, cluster_size, kind, stale):
    size = 5 * MIB + 512 if cluster_size < 65536 else 9 * MIB + 512
    disk = bench.disk(size, cluster_size)
    options = [f"cluster_size={cluster_size}"] + (["compression_type=zstd"] if kind == "zstd" else [])
    image = bench.qcow2(disk, *options, **PACKED[kind])
    assert await bench.convert(image, size, stale=stale) == disk.read_bytes()


@pytest.mark.parametrize("pack", [False, True])
async def test_version_2(bench, pack):
    disk = bench.disk(4 * MIB)
    assert await bench.convert(bench.qcow2(disk, "compat=0.10", pack=pack), 4 * MIB) == disk.read_bytes()


@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster_size", [512, 65536])
@pytest.mark.parametrize("stale", [False, True])
async def test_empty_image(bench, preallocation, cluster_size, stale):
    image = bench.folder / "image.qcow2"
    options = f"preallocation={preallocation},cluster_size={cluster_size}"
    bench.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, 3 * MIB)
    assert await bench.convert(image, 3 * MIB, stale=stale) == bytes(3 * MIB)


def scribbled(bench, seed, *, cluster_size, size=12 * MIB):
    """An image written to out of order, with zero clusters of both kinds, discards, packed clusters, snapshots."""
    rng, image = random.Random(seed), bench.folder / f"scribbled-{seed}.qcow2"
    bench.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", image, size)
    for part in range(3):
        commands = []
        for _ in range(40):
            at = rng.randrange(size // 512) * 512
            length = min(rng.choice([512, 4096, 65536, 300 * 512]), size - at)
            what = rng.choice(
                [f"write -P {rng.randrange(1, 256)}", "write -z", "write -z -u", "discard", "write -c -P 7"]
            )
            if "-c" in what:
                at, length = at // cluster_size * cluster_size, cluster_size
            if at + length <= size:
                commands += ["-c", f"{what} {at} {length}"]
        # packing a cluster that is there already is refused: fine, the rest is written
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(image)], check=False, capture_output=True)
        if part < 2:
            bench.run("qemu-img", "snapshot", "-c", f"state{part}", image)
    return image


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 524288])
@pytest.mark.parametrize("seed", range(4))
async def test_image_written_by_guest(bench, seed, cluster_size):
    image = scribbled(bench, seed, cluster_size=cluster_size)
    assert await bench.convert(image, 12 * MIB, stale=bool(seed % 2)) == bench.as_qemu_reads_it(image)


async def test_a_long_header(bench):
    """Header extensions, and a header longer than version 3's first one."""
    disk = bench.disk(2 * MIB)
    image = bench.qcow2(disk, "compat=1.1,lazy_refcounts=on")
    bench.run("qemu-img", "bitmap", "--add", image, "changes")
    assert await bench.convert(image, 2 * MIB) == disk.read_bytes()


@pytest.mark.parametrize("kind", sorted(PACKED))
async def test_truncated_image_is_corrupt(bench, kind):
    """Whatever is left of an image, nothing but the whole disk counts as success."""
    disk = bench.disk(2 * MIB, 7)
    options = ["compression_type=zstd"] if kind == "zstd" else []
    image = bench.qcow2(disk, *options, **PACKED[kind])
    whole, rng = image.stat().st_size, random.Random(kind)
    assert whole > MIB // 4
    for stop in sorted((rng.randrange(whole) for _ in range(60)), reverse=True):
        os.truncate(image, stop)
        with pytest.raises((CorruptImageError,) if stop >= 4 else Exception):
            assert await bench.convert(image, 2 * MIB) != disk.read_bytes(), f"whole after {stop} of {whole}"


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("kind", ["raw", "512", "65536"])
async def test_onto_a_block_device(bench, loop_device, sector, kind):
    """Ends inside a block, clusters smaller than a block; what follows the image stays as it was."""
    size = 6 * MIB + (1000 if kind == "raw" else 512)
    disk = bench.disk(size)
    image = disk if kind == "raw" else bench.qcow2(disk, f"cluster_size={kind}")
    device = loop_device(8 * MIB, sector)
    size = size if kind == "raw" else 6 * MIB + 512
    done = await bench.convert(image, size, "raw" if kind == "raw" else "qcow2", stale=True, path=device)
    assert done == disk.read_bytes()
    with device.open("rb") as file:
        file.seek(size)
        assert file.read() == b"\xa5" * (8 * MIB - size)


async def test_device_too_small(bench, loop_device):
    device = loop_device(MIB, 512)
    with pytest.raises(ImageTooLargeError):
        await bench.convert(bench.disk(2 * MIB), 2 * MIB, "raw", stale=True, path=device)
    assert device.read_bytes() == b"\xa5" * MIB


@pytest.mark.parametrize("kind", ["raw", "qcow2", "packed"])
async def test_sparse_stays_sparse(bench, kind):
    """Holes of the image are holes of the file, whether the device read as zero or not."""
    disk = bench.folder / "sparse.raw"
    with disk.open("wb") as file:
        file.write(b"data" * 4096)
        file.seek(32 * MIB)
        file.write(b"more" * 4096 + bytes(8 * MIB))
    size = disk.stat().st_size
    image = disk if kind == "raw" else bench.qcow2(disk, pack=kind == "packed")
    for stale in (False, True):
        out = bench.folder / "out"
        out.write_bytes(b"\xa5" * size if stale else b"")
        os.truncate(out, size)
        await bench.convert(image, size, "raw" if kind == "raw" else "qcow2", stale=stale, path=out)
        assert out.stat().st_blocks * 512 <= MIB
        assert out.read_bytes() == disk.read_bytes()
