"""The cache's disk becomes full during a download: the job fails with that reason."""

import errno
import hashlib
import os
import time

import pytest
from msgspec.structs import replace

from provisioner.contracts import Checksum, source
from provisioner.contracts.testing import FakeSource
from provisioner.jobs import Status
from tests.cancellation.harness import SPEC, URL, Harness


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_download_disk_full(folder, monkeypatch, number):
    """The converter, which waits for bytes that never arrive, fails with the download's error."""
    image = bytes(range(1, 252)) * 50_000  # longer than what is inspected before the conversion starts
    write, harness = os.pwrite, Harness(folder, source=FakeSource({URL: image}))

    def full(fd, data, offset):
        if offset < len(image) // 2:
            return write(fd, data, offset)
        stop = time.monotonic() + 60
        while "start" not in harness.converter.steps.log and time.monotonic() < stop:  # in a thread
            time.sleep(0.001)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(source.os, "pwrite", full)
    async with harness.running():
        spec = replace(SPEC, checksum=Checksum("sha256", hashlib.sha256(image).hexdigest()))
        job = await harness.run(spec)
        assert job.status is Status.FAILED
        assert "the cache's file system is full" in job.error
        harness.assert_nothing_left()
