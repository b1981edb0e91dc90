"""Cancel at every place that can hang: the job ends, and nothing of it stays. After httpcore's idea."""

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

NOT_IN_A_JOB = {"list", "remove", "recover", "undo"}
MODES = {"new": Placement.SWAP, "swap": Placement.SWAP, "in-place": Placement.IN_PLACE}
STEPS = [
    *(("source", step) for step in FakeSource.STEPS),
    *(("converter", step) for step in FakeConverter.STEPS),
    *(("target", step) for step in FakeTarget.STEPS if step not in NOT_IN_A_JOB),
    *(("guard", step) for step in FakeGuard.STEPS),
]
# Where the way of placing leads past a step.
NOT_REACHED = {
    ("new", "guard", "users"),
    ("in-place", "target", "capacity"),
    ("in-place", "target", "stage"),
    ("in-place", "target", "staged"),
}
CASES = [(mode, *step) for mode in MODES for step in STEPS if (mode, *step) not in NOT_REACHED]
CLONE_STEPS = [("target", step) for step in FakeCloneTarget.STEPS if step not in NOT_IN_A_JOB] + STEPS[:8]


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    """A commit and an undo that hang are waited for, but not for minutes."""
    monkeypatch.setattr("provisioner.pipeline.copy.COMMIT_TIMEOUT", 0.2)
    monkeypatch.setattr("provisioner.contracts.testing.fake_target.UNDO_DEADLINE", 0.02)


def make(folder, mode):
    harness = Harness(folder, target=FakeTarget(folder / "main", name="main", replace=MODES[mode]))
    harness.source.at_byte = len(IMAGE) // 2
    if mode != "new":
        harness.put_old_volume()
    return harness


def assert_as_before(harness, mode, fake, step):
    """The volume is what it was; overwritten in place it may be, but only by an image that was verified."""
    harness.assert_nothing_left()
    if mode == "in-place" and (fake == "converter" or step == "commit" or harness.volume() != OLD):
        assert fake == "converter" or step in {"commit", "users", "find"}
        assert DIGEST in {entry.digest for entry in harness.cache.entries()}
    else:
        assert harness.volume() == (None if mode == "new" else OLD)


@pytest.mark.parametrize(("mode", "fake", "step"), CASES)
async def test_cancel_leaves_nothing(folder, mode, fake, step):
    """The cancel returns when the job has ended; another job does not notice; the volume can be made afterwards."""
    harness = make(folder, mode)
    harness.steps(fake).hang_at = step
    async with harness.running():
        job_id = await harness.submit()
        await harness.steps(fake).reached.wait()
        if not step.startswith("commit"):  # nobody waits for a commit as long as another job takes
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
async def test_shutdown_leaves_the_job_accepted(folder, fake, step):
    """A job cancelled from outside is rolled back, waits on disk, and is done after the restart."""
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
async def test_cancel_on_a_cloning_target(folder, fake, step, known):
    """The same where the volume is a clone: of a base this job makes, or of one that is there."""
    harness = Harness(folder, target=FakeCloneTarget(folder / "main", name="main"))
    harness.source.at_byte = len(IMAGE) // 2
    async with harness.running():
        if known:
            assert (await harness.run()).volume.provisioned_by == "clone"
            await harness.supervisor.remove_volume("main", "web01")
            if fake != "target" or step in {"stage", "staged", "stage_base"}:
                return  # a clone of a known base takes none of these steps
        harness.steps(fake).hang_at = step
        job_id = await harness.submit()
        if step in {"stage", "staged"}:  # of copies only
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
            assert base.read_bytes()[: len(IMAGE)] == IMAGE
        harness.steps(fake).hang_at = None
        assert (await harness.run()).status is Status.COMPLETED
        assert harness.volume() == IMAGE


@pytest.mark.parametrize(("fake", "step"), STEPS)
@pytest.mark.parametrize("error", [ConvertError("it broke"), ZeroDivisionError("a bug")], ids=["error", "bug"])
async def test_a_failure_leaves_nothing(folder, fake, step, error):
    """The same for an error at each place, foreseen or not; the job says the cause."""
    harness = make(folder, "swap")
    harness.steps(fake).fail_at = {step: error}
    async with harness.running():
        job = await harness.run()
        if step == "committed":  # the volume stood by then
            assert job.status is Status.COMPLETED
            assert harness.volume() == IMAGE
            harness.assert_nothing_left()
        else:
            assert job.status is Status.FAILED
            assert re.search(r"it broke|internal error \(ZeroDivisionError\)", job.error)
            assert_as_before(harness, "swap", fake, step)
        harness.steps(fake).fail_at = {}
        assert (await harness.run()).status is Status.COMPLETED


async def test_an_undo_that_hangs_is_a_failure_of_its_own(folder):
    """The job does not count as cancelled while its debris stands; recovery finds it by the job's name on it."""
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


async def test_cancelling_twice_at_once_is_cancelling_once(folder):
    """Both callers hear it, whether the job runs or waits."""
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


async def test_a_passenger_leaves_and_the_download_goes_on(folder):
    """Two jobs on one download: cancelling the one leaves the other its image."""
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
