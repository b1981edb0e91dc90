# ruff: noqa: ASYNC221, ASYNC230, ASYNC240 - small files of a test
"""Whole jobs on a file system with reflinks: real cache, converter and target."""

import hashlib
import os
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from lvp_convert_native import NativeConverter, NativeSettings
from lvp_target_file import reflink
from provisioner.contracts import MIB, BackEndContext, Checksum, ImageUrl
from provisioner.contracts.testing import FakeSource
from provisioner.jobs import Status
from provisioner.pipeline.dry_run import DryRun
from tests.cancellation.harness import DIGEST, IMAGE, SPEC, URL, Harness
from tests.reflink.harness import bases, make_target, staged_files

pytestmark = pytest.mark.slow  # mounted file systems
SIZE = 4 * MIB
# The image ends within a block, which a larger volume has alone.
BLOCK = 4096
RAW = msgspec.structs.replace(SPEC, size_bytes=SIZE)


def named(name, spec=RAW, **changes):
    return msgspec.structs.replace(spec, volume_name=name, **changes)


@asynccontextmanager
async def host(images, state, **parts):
    """A daemon's parts with the file target on ``images``, and its cache below ``state``."""
    images.mkdir(exist_ok=True)
    target = make_target(images)
    target.name = SPEC.target
    native = NativeConverter(NativeSettings(), BackEndContext("native", state))
    harness = Harness(state, target=target, converter=native, **parts)
    harness.back_ends.converters["qcow2"] = native
    async with harness.running():
        yield harness
        assert staged_files(images) == []
    await target.aclose()


def content(job):
    return Path(job.volume.path).read_bytes()


async def test_raw_image_takes_no_space_beside_the_cache(shared):
    """Whether the job downloads it or finds it in the cache; and without the cached image, too."""
    async with host(shared / "images", shared) as on:
        jobs = [await on.run(named("web01")), await on.run(named("web02"))]
        (entry,) = on.cache.entries()
        (base,) = bases(shared / "images")
        files = [Path(job.volume.path) for job in jobs]
        files += [Path(on.cache.path(entry)), shared / "images/.lvp/base" / base]
        assert all(reflink.own_bytes(path) <= BLOCK for path in files)
        await on.cache.remove(DIGEST)
        jobs.append(await on.run(named("web03")))
        assert [(job.status, job.volume.provisioned_by) for job in jobs] == [(Status.COMPLETED, "clone")] * 3
        assert [job.cache_hit for job in jobs] == [False, True, True]
        assert all(content(job) == IMAGE.ljust(SIZE, b"\0") for job in jobs)
        assert len(on.source.opens) == 1


async def test_base_of_an_image_cached_before(shared):
    async with host(shared / "images", shared) as on:
        await on.run(named(None, size_bytes=0))
        job = await on.run(RAW)
        assert (job.volume.provisioned_by, job.cache_hit) == ("clone", True)
        assert reflink.own_bytes(Path(job.volume.path)) <= BLOCK
        assert content(job) == IMAGE.ljust(SIZE, b"\0")


async def test_base_is_not_made_of_a_damaged_image(shared):
    """The cached file rots on disk: the job downloads the image again before it makes the base."""
    async with host(shared / "images", shared) as on:
        await on.run(named(None, size_bytes=0))
        path = Path(on.cache.path(on.cache.entries()[0]))
        before = path.stat()
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(100_000)
            file.write(b"rot")
        path.chmod(before.st_mode & 0o777)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        job = await on.run(RAW)
        assert (job.status, job.volume.provisioned_by) == (Status.COMPLETED, "clone")
        assert content(job) == IMAGE.ljust(SIZE, b"\0")
        assert len(bases(shared / "images")) == 1


async def test_raw_image_in_a_cache_elsewhere(shared, tmp_path):
    async with host(shared, tmp_path) as on:
        jobs = [await on.run(named("web01")), await on.run(named("web02"))]
        assert [(job.status, job.volume.provisioned_by) for job in jobs] == [(Status.COMPLETED, "clone")] * 2
        assert all(content(job) == IMAGE.ljust(SIZE, b"\0") for job in jobs)


async def test_qcow2_image(shared, tmp_path):
    raw, qcow2 = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(IMAGE.ljust(MIB, b"\0") + IMAGE.ljust(MIB, b"\0"))
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    url = "https://images.example.com/disk.qcow2"
    checksum = Checksum("sha256", hashlib.sha256(qcow2.read_bytes()).hexdigest())
    spec = named("web01", image_url=ImageUrl.parse(url), image_format="qcow2", checksum=checksum)
    async with host(shared / "images", shared, source=FakeSource({url: qcow2.read_bytes()})) as on:
        jobs = [await on.run(spec), await on.run(named("web02", spec))]
        assert [(job.status, job.volume.provisioned_by) for job in jobs] == [(Status.COMPLETED, "clone")] * 2
        assert all(content(job) == raw.read_bytes().ljust(SIZE, b"\0") for job in jobs)
        assert [reflink.own_bytes(Path(job.volume.path)) for job in jobs] == [0, 0]


@pytest.mark.parametrize(("times", "made_by"), [(1, "clone"), (2, "copy")])
async def test_base_evicted_while_a_job_clones_it(shared, monkeypatch, times, made_by):
    """The job makes the base again; if that goes as well, it copies the image."""
    async with host(shared / "images", shared) as on:
        await on.run(RAW)
        share, evictions = reflink.clone, []

        def evict_and_clone(source, fd):
            if len(evictions) < times:
                evictions.append(source)
                on.target._room.keep_bases(0)
            share(source, fd)

        monkeypatch.setattr("lvp_target_file.clones.reflink.clone", evict_and_clone)
        jobs = [await on.run(named("web02")), await on.run(named("web03"))]
        assert [job.volume.provisioned_by for job in jobs] == [made_by, "clone"]
        assert len(evictions) == times
        assert all(content(job) == IMAGE.ljust(SIZE, b"\0") for job in jobs)


async def test_no_room_for_a_base(small, tmp_path):
    """A volume fits, but not a base beside it. The dry run says so, and so does the one for a smaller volume."""
    image = IMAGE * 200
    spec = named("web01", checksum=Checksum("sha256", hashlib.sha256(image).hexdigest()))
    async with host(small, tmp_path, source=FakeSource({URL: image})) as on:
        free = (await on.target.capacity()).free_bytes
        large = named("web01", spec, size_bytes=free - 16 * MIB)
        dry_runs = [DryRun(on.pipeline, large), DryRun(on.pipeline, named("web01", spec, size_bytes=free // 2))]
        for dry_run in dry_runs:
            await dry_run.run()
        assert [dry_run.refusals for dry_run in dry_runs] == [[], []]
        assert [dry_run.plan.provisioned_by for dry_run in dry_runs] == ["copy", "clone"]
        assert "that a clone and its base may need" in dry_runs[0].plan.copy_reason
        assert dry_runs[1].plan.copy_reason is None
        job = await on.run(large)
        assert (job.status, job.volume.provisioned_by) == (Status.COMPLETED, "copy")
        assert bases(small) == []
