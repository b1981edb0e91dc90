"""Tests that cancel a job at every step that can hang: it ends and leaves nothing behind. After httpcore's idea."""

import re

import msgspec
import pytest
import trio
import trio.testing

from provisioner.contracts.errors import CancelError, ConvertError
from provisioner.contracts.testing import FakeCloneTarget, FakeConverter, FakeGuard, FakeSource, FakeTarget
from provisioner.contracts.types import Placement
from provisioner.jobs import Status
from tests.cancellation.harness import DIGEST, IMAGE, OLD, OTHER_SPEC, SPEC, Harness
from tests.contents import first_bytes

NOT_IN_A_JOB = {"list", "remove", "resize", "recover", "undo"}
MODES = {"new": Placement.SWAP, "swap": Placement.SWAP, "in-place": Placement.IN_PLACE}
STEPS = [
    *(("source", step) for step in FakeSource.STEPS),
    *(("converter", step) for step in FakeConverter.STEPS),
    *(("target", step) for step in FakeTarget.STEPS if step not in NOT_IN_A_JOB),
    *(("guard", step) for step in FakeGuard.STEPS),
]
# Steps that a placement does not reach.
NOT_REACHED = {
    ("new", "guard", "users"),
    ("in-place", "target", "capacity"),
    ("in-place", "target", "stage"),
    ("in-place", "target", "staged"),
}
CASES = [(mode, *step) for mode in MODES for step in STEPS if (mode, *step) not in NOT_REACHED]
CLONE_STEPS = [("target", step) for step in FakeCloneTarget.STEPS if step not in NOT_IN_A_JOB] + STEPS[:8]


@pytest.fixture(autouse=True)
def _short_timeouts(monkeypatch):
    """Shorten the time limits for a commit and an undo."""
    monkeypatch.setattr("provisioner.pipeline.copy.COMMIT_TIMEOUT", 0.2)
    monkeypatch.setattr("provisioner.contracts.testing.fake_target.UNDO_DEADLINE", 0.02)


def make(folder, mode):
    harness = Harness(folder, target=FakeTarget(folder / "main", name="main", replace=MODES[mode]))
    harness.source.at_byte = len(IMAGE) // 2
    if mode != "new":
        harness.put_old_volume()
    return harness


def assert_as_before(harness, mode, fake, step):
    """Check that the volume is unchanged, or overwritten in place, but only by a verified image."""
    harness.assert_nothing_left()
    if mode == "in-place" and (fake == "converter" or step == "commit" or harness.volume() != OLD):
        assert fake == "converter" or step in {"commit", "users", "find"}
        assert DIGEST in {entry.digest for entry in harness.cache.entries()}
    else:
        assert harness.volume() == (None if mode == "new" else OLD)


@pytest.mark.parametrize(("mode", "fake", "step"), CASES)
async def test_cancel_at_any_step(folder, mode, fake, step):
    """The cancel returns when the job has ended. Other jobs continue, and the volume can be created afterwards."""
    harness = make(folder, mode)
    harness.steps(fake).hang_at = step
    async with harness.running():
        job_id = await harness.submit()
        await harness.steps(fake).reached.wait()
        if not step.startswith("commit"):  # the time limit of a commit is too short for another job
            assert (await harness.run(OTHER_SPEC)).status is Status.COMPLETED
        if step == "committed":
            with pytest.raises(CancelError, match="completed"):
                await harness.supervisor.cancel(job_id)
            assert harness.volume() == IMAGE
            harness.assert_nothing_left()
        else:
            assert (await harness.supervisor.cancel(job_id)).status is Status.CANCELLED
            assert_as_before(harness, mode, fake, step)
        assert harness.supervisor.active_count == 0
        harness.steps(fake).hang_at = None
        assert (await harness.run()).status is Status.COMPLETED
        assert harness.volume() == IMAGE


@pytest.mark.parametrize(("fake", "step"), STEPS)
async def test_shutdown_at_any_step(folder, fake, step):
    """The job is rolled back, stays in the store, and completes after the restart."""
    harness = make(folder, "swap")
    harness.steps(fake).hang_at = step
    async with harness.running():
        job_id = await harness.submit()
        await harness.steps(fake).reached.wait()
    if step != "committed":
        assert_as_before(harness, "swap", fake, step)
    harness.steps(fake).hang_at = None
    async with harness.running():
        job = await harness.ended(job_id)
        assert job.status is Status.COMPLETED
        assert job.attempts == (1 if step == "committed" else 2)
        assert harness.volume() == IMAGE
        harness.assert_nothing_left()


@pytest.mark.parametrize(("fake", "step"), CLONE_STEPS)
@pytest.mark.parametrize("known", [False, True], ids=["first", "again"])
async def test_cancel_clone_at_any_step(folder, fake, step, known):
    """The volume is a clone, of a base that this job creates or that already exists."""
    harness = Harness(folder, target=FakeCloneTarget(folder / "main", name="main"))
    harness.source.at_byte = len(IMAGE) // 2
    async with harness.running():
        if known:
            assert (await harness.run()).volume.provisioned_by == "clone"
            await harness.supervisor.remove_volume("main", "web01")
            if fake != "target" or step in {"stage", "staged", "stage_base", "why_copy"}:
                return  # a clone of an existing base takes none of these steps
        harness.steps(fake).hang_at = step
        job_id = await harness.submit()
        if step in {"stage", "staged"}:  # only copies take these steps
            assert (await harness.ended(job_id)).status is Status.COMPLETED
            return
        await harness.steps(fake).reached.wait()
        if step == "committed" and known:
            with pytest.raises(CancelError, match="completed"):
                await harness.supervisor.cancel(job_id)
        else:
            assert (await harness.supervisor.cancel(job_id)).status is Status.CANCELLED
            assert harness.volume() is None
        harness.assert_nothing_left()
        for base in harness.target._base_folder().iterdir():
            assert first_bytes(base, len(IMAGE)) == IMAGE
        harness.steps(fake).hang_at = None
        assert (await harness.run()).status is Status.COMPLETED
        assert harness.volume() == IMAGE


@pytest.mark.parametrize(("fake", "step"), STEPS)
@pytest.mark.parametrize("error", [ConvertError("it broke"), ZeroDivisionError("a bug")], ids=["error", "bug"])
async def test_failure_at_any_step(folder, fake, step, error):
    """The error may be an expected one or a bug; the job reports the cause and leaves nothing behind."""
    harness = make(folder, "swap")
    harness.steps(fake).fail_at = {step: error}
    async with harness.running():
        job = await harness.run()
        if step == "committed":  # the volume is already in place
            assert job.status is Status.COMPLETED
            assert harness.volume() == IMAGE
            harness.assert_nothing_left()
        else:
            assert job.status is Status.FAILED
            assert re.search(r"it broke|internal error \(ZeroDivisionError\)", job.error)
            assert_as_before(harness, "swap", fake, step)
        harness.steps(fake).fail_at = {}
        assert (await harness.run()).status is Status.COMPLETED


async def test_cancel_with_hanging_undo(folder):
    """The job fails, since its staged volume is left; recovery finds the volume by the job's id."""
    harness = make(folder, "new")
    harness.steps("target").hang_at = "undo"
    harness.converter.steps.hang_at = "block"
    async with harness.running():
        job_id = await harness.submit()
        await harness.converter.steps.reached.wait()
        with pytest.raises(Exception, match=r"the job was stopped, but: .*could not remove the staged volume"):
            await harness.supervisor.cancel(job_id)
        job, _ = await harness.supervisor.find(job_id)
        assert job.status is Status.FAILED
        assert "retried at the next start" in job.error
        assert harness.target.leftovers() == [f"{job_id}~web01"]
    harness.steps("target").hang_at = None
    async with harness.running():
        assert harness.target.leftovers() == []


async def test_cancel_twice_at_once(folder):
    """Both callers get the result, whether the job is running or pending."""
    harness = Harness(folder)
    harness.source.steps.hang_at = "stat"
    harness.jobs = type(harness.jobs)(max_concurrent=1)
    async with harness.running():
        running = await harness.submit()
        await harness.source.steps.reached.wait()
        waiting = await harness.submit(OTHER_SPEC)
        said = []

        async def cancel(job_id):
            said.append((await harness.supervisor.cancel(job_id)).status)

        for job_id in (waiting, running):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel, job_id)
                nursery.start_soon(cancel, job_id)
        assert said == [Status.CANCELLED] * 4
        harness.assert_nothing_left()


async def test_cancel_one_job_of_shared_download(folder):
    """The download continues for the other job."""
    harness = Harness(folder)
    harness.source.at_byte = len(IMAGE) // 2
    harness.source.steps.hang_at = "byte"
    async with harness.running():
        first = await harness.submit()
        await harness.source.steps.reached.wait()
        second = await harness.submit(msgspec.structs.replace(SPEC, volume_name="web02"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [download.users for download in harness.cache._downloads._by_key.values()] == [2]
        await harness.supervisor.cancel(first)
        assert [download.users for download in harness.cache._downloads._by_key.values()] == [1]
        await harness.supervisor.cancel(second)
        assert harness.volume() is None
        assert harness.volume("web02") is None
        harness.assert_nothing_left()
