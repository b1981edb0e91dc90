"""A caller limited to some sources: no checksum gives it another source's image from the cache or from a base."""

import hashlib

import msgspec
import pytest

from provisioner.contracts import MIB, Checksum
from provisioner.contracts.testing import FakeCloneTarget, FakeImage
from provisioner.jobs import Status
from provisioner.jobs.record import same_request
from tests.cancellation.harness import OTHER_IMAGE, OTHER_SPEC, SPEC, URL, Harness
from tests.contents import first_bytes

SECRET = Checksum("sha256", hashlib.sha256(OTHER_IMAGE).hexdigest())
# The caller's request: a url of its own source, and the digest of the other source's image.
LIMITED = msgspec.structs.replace(SPEC, image_format="qcow2", checksum=SECRET, allowed_sources=("main",))
ON_MAIN = msgspec.structs.replace(OTHER_SPEC, target="main")


def stolen(harness):
    path = harness.target.folder / "web01"
    return path.exists() and OTHER_IMAGE in first_bytes(path, MIB)


@pytest.fixture(params=["copy", "clone"])
def harness(request, folder):
    return Harness(folder, target=FakeCloneTarget(folder / "main", name="main") if request.param == "clone" else None)


@pytest.mark.parametrize("how", ["request", "checksum file"])
@pytest.mark.parametrize("allowed", [("main",), ("https://images.example.com/",)])
async def test_limited_caller_and_foreign_digest(harness, how, allowed):
    spec = msgspec.structs.replace(LIMITED, allowed_sources=allowed)
    if how == "checksum file":
        harness.source.images[f"{URL}.sha256"] = FakeImage(SECRET.hex.encode())
        spec = msgspec.structs.replace(spec, checksum=None)
    async with harness.running():
        assert (await harness.run(ON_MAIN)).status is Status.COMPLETED
        job = await harness.run(spec)
        assert job.status is Status.FAILED
        assert not stolen(harness)
        harness.assert_nothing_left()


async def test_limited_caller_and_image_of_two_sources(harness):
    """It is downloaded once from the caller's own source, which shows that it may have it; then it is a hit."""
    harness.source.images[URL] = FakeImage(OTHER_IMAGE)
    async with harness.running():
        await harness.run(ON_MAIN)
        first = await harness.run(LIMITED)
        assert (first.status, first.cache_hit) == (Status.COMPLETED, False)
        assert stolen(harness)
        assert len(harness.source.opens) == 1
        again = await harness.run(msgspec.structs.replace(LIMITED, volume_name="web02"))
        assert (again.status, again.cache_hit) == (Status.COMPLETED, True)
        assert len(harness.source.opens) == 1
        harness.assert_nothing_left()


@pytest.mark.parametrize("allowed", [None, ("main", "other"), ("https://other.example.com/",)])
async def test_caller_that_may_use_both_sources(harness, allowed):
    async with harness.running():
        await harness.run(ON_MAIN)
        job = await harness.run(
            msgspec.structs.replace(LIMITED, image_url=OTHER_SPEC.image_url, allowed_sources=allowed)
        )
        assert (job.status, job.cache_hit) == (Status.COMPLETED, True)
        assert len(harness.other_source.opens) == 1


def test_same_request_ignores_limits():
    """A repeat under the same Idempotency-Key is the same request, even if the limits have changed."""
    assert same_request(LIMITED, msgspec.structs.replace(LIMITED, allowed_sources=None), None)
