"""A url that may come to mean another image, such as a tag, is looked up once for each job."""

import hashlib
from dataclasses import replace

import msgspec
import pytest

from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.testing import FakeSource
from provisioner.jobs import Status
from tests.cancellation.harness import IMAGE, SPEC, Harness

TAG = "oci://images.example.com/debian:12"
OLD, NEW = (f"oci://images.example.com/debian@sha256:{mark * 64}" for mark in "ab")
NEW_IMAGE = IMAGE[::-1]


class Registry(FakeSource):
    """Images by digest, and a tag that ``means`` one of them."""

    by_digest = True

    def __init__(self, **steps):
        super().__init__({OLD: IMAGE, NEW: NEW_IMAGE}, **steps)
        self.means = OLD
        self.asked = []

    async def stat(self, url):
        self.asked.append(url.text)
        found = await super().stat(ImageUrl.parse(self.means if url.text == TAG else url.text))
        digest = Checksum("sha256", hashlib.sha256(self.images[found.url.text].data).hexdigest())
        pinned = found.url if url.text == TAG else None
        return replace(found, url=url, version=str(digest), digest=digest, pinned=pinned)


@pytest.fixture
def tagged():
    return msgspec.structs.replace(SPEC, image_url=ImageUrl.parse(TAG), checksum=None)


@pytest.mark.parametrize("step", ["open", "byte"])
async def test_restart_goes_on_with_the_same_image(folder, tagged, step):
    """The tag moves while the daemon is down: the job has the image that it began with, a new one the new image."""
    registry = Registry(at_byte=100_000)
    harness = Harness(folder, source=registry)
    async with harness.running():
        registry.steps.hang_at = step
        job_id = await harness.submit(tagged)
        await registry.steps.reached.wait()
        assert (await harness.store.get(job_id)).pinned_url == OLD
    registry.steps.hang_at, registry.means = None, NEW
    async with harness.running():
        job = await harness.ended(job_id)
        assert (job.status, job.attempts, job.pinned_url) == (Status.COMPLETED, 2, OLD)
        assert job.spec.image_url.text == TAG
        assert harness.volume() == IMAGE
        assert registry.asked == [TAG, OLD]
        assert {url for url, *_ in registry.opens} == {OLD}
        again = await harness.run(msgspec.structs.replace(tagged, volume_name="web02"))
        assert (again.status, again.pinned_url) == (Status.COMPLETED, NEW)
        assert harness.volume("web02") == NEW_IMAGE


async def test_image_that_is_gone_after_a_restart(folder, tagged):
    """Another image is not taken instead."""
    registry = Registry()
    harness = Harness(folder, source=registry)
    async with harness.running():
        registry.steps.hang_at = "open"
        job_id = await harness.submit(tagged)
        await registry.steps.reached.wait()
    registry.steps.hang_at, registry.means = None, NEW
    del registry.images[OLD]
    async with harness.running():
        job = await harness.ended(job_id)
        assert (job.status, harness.volume()) == (Status.FAILED, None)
        assert "sha256:aaa" in job.error


async def test_url_that_always_means_the_same(folder):
    harness = Harness(folder)
    async with harness.running():
        assert (await harness.run()).pinned_url is None
