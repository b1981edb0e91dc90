"""A name that leads to mirrors with different content: an image put together from both is fetched again from one."""

from __future__ import annotations

import hashlib
import random

import msgspec
import pytest
import trio

from provisioner.contracts import MIB, Checksum, ImageUrl
from provisioner.contracts.testing import FakeSource
from provisioner.download import parallel_ranges
from provisioner.jobs import Status
from tests.cancellation.harness import SPEC, URL, Harness
from tests.contents import first_bytes

IMAGE, OUTDATED = (random.Random(seed).randbytes(4 * MIB) for seed in (1, 2))
OTHER_MIRROR = "https://images.example.com/other/disk.raw"


class TwoMirrors(FakeSource):
    """The first connection leads to one mirror, further ones lead to the other, all of them slowly."""

    parallel_ranges = 4

    def __init__(self):
        super().__init__({URL: IMAGE, OTHER_MIRROR: OUTDATED}, chunk_size=16 * 1024)

    def open(self, url, start=0, stop=None, version=None):
        return super().open(url if stop is None else ImageUrl.parse(OTHER_MIRROR), start, stop, version)

    async def pass_by(self, url, start, stop):
        await trio.sleep(0.004)
        await super().pass_by(url, start, stop)


@pytest.fixture
def soon(monkeypatch):
    for name, seconds in (("SETTLE", 0.02), ("MEASURE", 0.05), ("MIN_REST", 0.05)):
        monkeypatch.setattr(parallel_ranges, name, seconds)


async def test_mixed_image_is_fetched_over_one_connection(tmp_path, soon):
    spec = msgspec.structs.replace(SPEC, checksum=Checksum("sha256", hashlib.sha256(IMAGE).hexdigest()))
    harness = Harness(tmp_path, source=TwoMirrors())
    async with harness.running():
        job = await harness.run(spec)
        assert job.status is Status.COMPLETED, job.error
    assert first_bytes(harness.target.folder / "web01", len(IMAGE)) == IMAGE
    whole = [number for number, (url, start, _) in enumerate(harness.source.opens) if (url, start) == (URL, 0)]
    assert len(whole) == 2
    assert any(url == OTHER_MIRROR for url, _, _ in harness.source.opens[: whole[1]])
    assert len(harness.source.opens) == whole[1] + 1
