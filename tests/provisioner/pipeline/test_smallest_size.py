"""Jobs without a size: the volume is the smallest of whole GiB that fits the image."""

import gzip
import hashlib

import msgspec
import pytest

from provisioner.contracts import GIB, MIB, Checksum
from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.testing import FakeCloneTarget, FakeImage, FakeSource, FakeTarget
from provisioner.jobs import Status
from provisioner.pipeline.dry_run import DryRun
from provisioner.pipeline.plan import smallest_size
from tests.cancellation.harness import IMAGE, SPEC, URL, Harness
from tests.provisioner.pipeline.test_pipeline import qcow2

UNSIZED = msgspec.structs.replace(SPEC, size_bytes=0)


def asking_for(image, image_format="raw"):
    checksum = Checksum("sha256", hashlib.sha256(image).hexdigest())
    return msgspec.structs.replace(UNSIZED, image_format=image_format, checksum=checksum)


def serving(folder, image, **more):
    return Harness(folder, source=FakeSource({URL: image}), **more)


@pytest.mark.parametrize(("virtual_size", "gib"), [(1, 1), (GIB, 1), (GIB + 512, 2), (20 * GIB - 512, 20)])
def test_smallest_size(virtual_size, gib):
    assert smallest_size(virtual_size) == gib * GIB


@pytest.mark.parametrize("virtual_size", [MIB, GIB, GIB + 512])
async def test_size_from_a_header(folder, virtual_size):
    image = qcow2(virtual_size)
    harness = serving(folder, image)
    async with harness.running():
        job = await harness.run(asking_for(image, "qcow2"))
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert job.volume.size_bytes == smallest_size(virtual_size)
        harness.assert_nothing_left()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [None, -1], ids=["unknown-length", "known-length"])
async def test_size_from_a_raw_image(folder, packed, size):
    image = gzip.compress(IMAGE) if packed else IMAGE
    harness = serving(folder, FakeImage(image, size=size))
    async with harness.running():
        job = await harness.run(asking_for(image))
        assert (job.status, job.volume.size_bytes) == (Status.COMPLETED, GIB)
        assert harness.volume() == IMAGE
        harness.assert_nothing_left()


async def test_size_from_a_base(folder):
    harness = Harness(folder, target=FakeCloneTarget(folder / "main", name="main"))
    async with harness.running():
        for name in ("web01", "web02"):
            job = await harness.run(msgspec.structs.replace(UNSIZED, volume_name=name))
            assert (job.status, job.volume.size_bytes) == (Status.COMPLETED, GIB)
            assert harness.volume(name) == IMAGE


async def test_size_is_stored_as_absent(folder):
    """After a restart, the image decides again."""
    harness = Harness(folder)
    async with harness.running():
        job_id = await harness.submit(UNSIZED)
        assert (await harness.store.get(job_id)).spec.size_bytes == 0
        assert (await harness.ended(job_id)).volume.size_bytes == GIB


async def test_volume_that_must_stay(folder):
    """The target refuses as soon as the size is known: nothing is staged."""
    harness = Harness(folder, target=FakeTarget(folder / "main", name="main", replace=None))
    async with harness.running():
        assert (await harness.run()).status is Status.COMPLETED
        harness.target.steps.log.clear()
        job = await harness.run(UNSIZED)
        assert job.status is Status.FAILED
        assert "may not be replaced" in job.error
        assert "stage" not in harness.target.steps.log


async def test_packed_image_larger_than_the_target(folder):
    """A bomb ends at the size of the target, which is the largest that a volume could have."""
    image = gzip.compress(bytes(8 * MIB))
    harness = serving(folder, image, target=FakeTarget(folder / "main", name="main", total_bytes=4 * MIB))
    async with harness.running():
        job = await harness.run(asking_for(image))
        assert job.status is Status.FAILED
        assert "decompresses to more than the 4MiB that would fit" in job.error
        harness.assert_nothing_left()


async def test_target_fails_to_tell_its_capacity(folder):
    image = gzip.compress(IMAGE)
    harness = serving(folder, image)
    harness.steps("target").fail_at["capacity"] = TargetUnavailableError("volume group vg0 does not exist")
    async with harness.running():
        job = await harness.run(asking_for(image))
        assert (job.status, "vg0 does not exist" in job.error) == (Status.FAILED, True)
        harness.assert_nothing_left()


@pytest.mark.parametrize("clones", [False, True])
async def test_plan_without_a_size(folder, clones):
    """Only a cached image, or a base, says how large the volume would be."""
    target = FakeCloneTarget(folder / "main", name="main") if clones else None
    harness = Harness(folder, target=target)
    async with harness.running():
        plans = []
        for _ in range(2):
            dry_run = DryRun(harness.pipeline, msgspec.structs.replace(UNSIZED, volume_name="web02"))
            await dry_run.run()
            assert dry_run.refusals == []
            plans.append(dry_run.plan)
            await harness.run()
    unknown, known = plans
    assert (unknown.volume_size_bytes, unknown.placement, unknown.target) == (None, None, "main")
    assert (known.volume_size_bytes, known.placement) == (GIB, "new")
