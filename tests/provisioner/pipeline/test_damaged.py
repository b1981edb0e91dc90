"""A cached image damaged on disk never becomes a volume: the job drops it and downloads it again."""

import gzip
import hashlib
import os
import sqlite3
from pathlib import Path

import msgspec
import pytest

from lvp_convert_native import NativeConverter, NativeSettings
from provisioner.contracts import BackEndContext, Checksum, Placement
from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.testing import FakeCloneTarget, FakeConverter, FakeSource, FakeTarget
from provisioner.jobs import Status
from tests.cancellation.harness import IMAGE, OLD, SPEC, URL, Harness

WEB02 = msgspec.structs.replace(SPEC, volume_name="web02")


def rot(harness):
    """Change a byte of the only cached image; keep its size and times."""
    (entry,) = harness.cache.entries()
    path = Path(harness.cache.path(entry))
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)
        file.seek(status.st_size // 2)
        file.write(bytes([byte[0] ^ 0xFF]))
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


@pytest.fixture(params=["checks itself", "is checked for"])
def converter(request, folder):
    if request.param == "is checked for":
        return FakeConverter()
    return NativeConverter(NativeSettings(), BackEndContext("native", folder))


async def test_damaged_image_is_downloaded_again(folder, converter):
    harness = Harness(folder, converter=converter)
    async with harness.running():
        await harness.run()
        path = rot(harness)
        job = await harness.run(WEB02)
        assert (job.status, job.cache_hit) == (Status.COMPLETED, False)
        assert harness.volume("web02") == IMAGE
        assert path.read_bytes() == IMAGE
        assert len(harness.source.opens) == 2
        assert (await harness.run(msgspec.structs.replace(SPEC, volume_name="web03"))).cache_hit
        harness.assert_nothing_left()


@pytest.mark.parametrize("placement", [Placement.SWAP, Placement.IN_PLACE])
async def test_damaged_image_cannot_be_downloaded(folder, converter, placement):
    """The old volume stays unchanged, even if it would be overwritten in place."""
    harness = Harness(folder, converter=converter, target=FakeTarget(folder / "main", name="main", replace=placement))
    async with harness.running():
        await harness.run(WEB02)
        harness.put_old_volume()
        rot(harness)
        harness.source.steps.fail_at = {"open": RemoteUnavailableError("the server is away")}
        job = await harness.run()
        assert job.status is Status.FAILED
        assert "the server is away" in job.error
        assert harness.volume() == OLD
        assert harness.cache.entries() == []
        harness.assert_nothing_left()


async def test_damaged_image_makes_no_base(folder, converter):
    harness = Harness(folder, converter=converter, target=FakeCloneTarget(folder / "main", name="main"))
    fetch = msgspec.structs.replace(SPEC, volume_name=None, size_bytes=0, target=None)
    async with harness.running():
        await harness.run(fetch)
        rot(harness)
        job = await harness.run()
        assert (job.status, job.volume.provisioned_by) == (Status.COMPLETED, "clone")
        assert harness.volume() == IMAGE
        harness.assert_nothing_left()


async def test_damaged_compressed_image(folder, converter):
    packed = gzip.compress(IMAGE, 0)
    spec = msgspec.structs.replace(WEB02, checksum=Checksum("sha256", hashlib.sha256(packed).hexdigest()))
    harness = Harness(folder, converter=converter, source=FakeSource({URL: packed}))
    async with harness.running():
        await harness.run(msgspec.structs.replace(spec, volume_name="web01"))
        rot(harness)
        assert (await harness.run(spec)).status is Status.COMPLETED
        assert harness.volume("web02") == IMAGE
        assert len(harness.source.opens) == 2
        harness.assert_nothing_left()


async def test_chunk_checksums_of_wrong_length(folder, converter):
    """They are computed again."""
    harness = Harness(folder, converter=converter)
    async with harness.running():
        await harness.run()
        (entry,) = harness.cache.entries()
        index = harness.cache._files.index
        right = index.sums(entry.sha256)
        index.put_sums(entry.sha256, right[:-4])
        assert (await harness.run(WEB02)).cache_hit
        assert index.sums(entry.sha256) == right


@pytest.mark.parametrize("damaged", [False, True])
async def test_image_without_chunk_checksums(folder, converter, damaged):
    """It is hashed at its first use and has chunk checksums from then on."""
    harness = Harness(folder, converter=converter)
    async with harness.running():
        await harness.run()
        if damaged:
            rot(harness)
    db = sqlite3.connect(folder / "cache" / ".lvp" / "index.sqlite")
    with db:
        db.execute("DROP TABLE chunk_sums")
    db.close()
    async with harness.running():
        job = await harness.run(WEB02)
        assert (job.status, job.cache_hit) == (Status.COMPLETED, not damaged)
        assert harness.volume("web02") == IMAGE
        (entry,) = harness.cache.entries()
        assert harness.cache._files.index.sums(entry.sha256) is not None
        await harness.cache.prune()
        assert harness.cache._files.index.sums(entry.sha256) is None
