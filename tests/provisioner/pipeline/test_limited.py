"""A caller limited to some sources: no checksum gives it another source's image, cached or made a base meanwhile."""

import hashlib

import msgspec
import pytest

from provisioner.contracts import MIB
from provisioner.contracts.testing import FakeCloneTarget, FakeImage
from provisioner.jobs import Status
from tests.cancellation.lab import OTHER_IMAGE, OTHER_SPEC, OTHER_URL, SPEC, URL, Lab

SECRET = f"sha256:{hashlib.sha256(OTHER_IMAGE).hexdigest()}"
# What the caller asks for: a url of its own source, and the digest of the other source's image.
LIMITED = msgspec.structs.replace(SPEC, image_type="qcow2", checksum=SECRET, allowed_sources=["main"])
ON_MAIN = msgspec.structs.replace(OTHER_SPEC, target="main")


def stolen(lab):
    path = lab.target.folder / "web01"
    return path.exists() and OTHER_IMAGE in path.read_bytes()[:MIB]


@pytest.fixture(params=["copy", "clone"])
def lab(request, folder):
    return Lab(folder, target=FakeCloneTarget(folder / "main", name="main") if request.param == "clone" else None)


@pytest.mark.parametrize("how", ["request", "checksum file"])
@pytest.mark.parametrize("allowed", [["main"], ["https://images.example.com/"]])
async def test_the_digest_of_another_source(lab, how, allowed):
    spec = msgspec.structs.replace(LIMITED, allowed_sources=allowed)
    if how == "checksum file":
        lab.source.images[f"{URL}.sha256"] = FakeImage(SECRET[7:].encode())
        spec = msgspec.structs.replace(spec, checksum=None)
    async with lab.running():
        assert (await lab.run(ON_MAIN)).status is Status.COMPLETED
        job = await lab.run(spec)
        assert job.status is Status.FAILED
        assert not stolen(lab)
        lab.assert_nothing_left()


async def test_an_image_that_both_sources_have(lab):
    """Downloaded once from its own source, which shows that the caller may have it; then it is a hit."""
    lab.source.images[URL] = FakeImage(OTHER_IMAGE)
    async with lab.running():
        await lab.run(ON_MAIN)
        first = await lab.run(LIMITED)
        assert (first.status, first.cache_hit) == (Status.COMPLETED, False)
        assert stolen(lab)
        assert len(lab.source.opens) == 1
        again = await lab.run(msgspec.structs.replace(LIMITED, volume_name="web02"))
        assert (again.status, again.cache_hit) == (Status.COMPLETED, True)
        assert len(lab.source.opens) == 1
        lab.assert_nothing_left()


@pytest.mark.parametrize("allowed", [None, ["main", "other"], ["https://other.example.com/"]])
async def test_a_caller_that_may(lab, allowed):
    async with lab.running():
        await lab.run(ON_MAIN)
        job = await lab.run(msgspec.structs.replace(LIMITED, image_url=OTHER_URL, allowed_sources=allowed))
        assert (job.status, job.cache_hit) == (Status.COMPLETED, True)
        assert len(lab.other_source.opens) == 1


def test_limits_are_no_part_of_the_request():
    """A repeat under the same Idempotency-Key is the same request, whatever the limits are by then."""
    assert LIMITED.fingerprint == msgspec.structs.replace(LIMITED, allowed_sources=None).fingerprint
    assert SPEC.fingerprint == "fee776bf1c572f5c1fd1c3bfdf610f39deca088ffe5afff4ed4c7a596ad1a2b0"
