"""Tests of a failed cleanup: the job fails with the reason, the service continues, and the rest is removed later."""

import errno
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from provisioner.contracts.errors import ProvisionerError
from provisioner.jobs import Status
from tests.cancellation.harness import OTHER_SPEC, SPEC, Harness
from tests.provisioner.cache.host import append_only


@contextmanager
def broken_disk(folder):
    """Make removing files in the folder fail with an I/O error."""
    unlink = os.unlink

    def broken(path, **more):
        if str(path).startswith(str(folder)):
            raise OSError(errno.EIO, "Input/output error")
        unlink(path, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", broken)
        yield


@contextmanager
def broken_close(folder):
    """Make closing a file in the folder fail, as on a network file system; the file is closed anyway."""
    close = os.close

    def broken(fd):
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
        close(fd)
        if name.startswith(str(folder)):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "close", broken)
        yield


async def two_downloads(harness):
    """Start two jobs with active downloads; return their ids and the event that lets the second one continue."""
    harness.source.chunk_size = 16 * 1024
    harness.source.at_byte, harness.source.steps.hang_at = 100_000, "byte"
    go_on, begun, give = trio.Event(), trio.Event(), harness.other_source.pass_by

    async def wait(url, start, stop):
        begun.set()
        await go_on.wait()
        await give(url, start, stop)

    harness.other_source.pass_by = wait
    ids = await harness.submit(SPEC), await harness.submit(OTHER_SPEC)
    await harness.source.steps.reached.wait()
    await begun.wait()
    return *ids, go_on


@pytest.mark.parametrize("obstacle", [append_only, broken_disk, broken_close])
async def test_cancel_with_failing_cleanup(folder, obstacle):
    harness = Harness(folder)
    partials = folder / "cache" / ".lvp" / "partial"
    async with harness.running():
        cancelled, other, go_on = await two_downloads(harness)
        with obstacle(partials), pytest.raises(ProvisionerError, match="could not"):
            await harness.supervisor.cancel(cancelled)
        job = await harness.ended(cancelled)
        assert job.status is Status.FAILED
        assert "it is retried" in job.error
        assert len(list(partials.iterdir())) == (1 if obstacle is broken_close else 2)
        go_on.set()
        assert (await harness.ended(other)).status is Status.COMPLETED
        harness.source.steps.hang_at = None
        assert (await harness.run()).status is Status.COMPLETED
        harness.assert_nothing_left()


async def test_start_with_failing_cleanup(folder):
    harness = Harness(folder)
    harness.source.chunk_size, harness.source.at_byte, harness.source.steps.hang_at = 16 * 1024, 100_000, "byte"
    partials = folder / "cache" / ".lvp" / "partial"
    partials.mkdir(parents=True)
    with append_only(partials):
        async with harness.running():
            job_id = await harness.submit()
            await harness.source.steps.reached.wait()
            with pytest.raises(ProvisionerError, match="cannot be removed"):
                await harness.supervisor.cancel(job_id)
        async with harness.running():  # starts although the file is still there
            assert len(list(partials.iterdir())) == 1
    async with harness.running():
        harness.assert_nothing_left()
