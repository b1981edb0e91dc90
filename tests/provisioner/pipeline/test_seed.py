"""A job with a cloud-init seed: volume and seed if something fails, hangs or is cancelled in between."""

import msgspec
import pytest

from provisioner.contracts import Placement, VolumeUser
from provisioner.contracts.errors import CancelError, TargetError, TargetUnavailableError
from provisioner.contracts.testing import FakeKeepingTarget, FakeTarget
from provisioner.jobs import Status
from provisioner.pipeline.cloud_init import CloudInit
from tests.cancellation.harness import IMAGE, SPEC, Harness

DATA, OLD_DATA = CloudInit(user_data="new-user-data"), CloudInit(user_data="old-user-data")


@pytest.fixture
def harness(folder):
    return Harness(folder, target=FakeKeepingTarget(folder / "main", name="main"))


async def submit(harness, data=DATA, **more):
    spec = msgspec.structs.replace(SPEC, cloud_init=data.seal() if data else None, **more)
    job = await harness.supervisor.submit(spec, request_id="r", principal=None, idempotency_key=None, cloud_init=data)
    return job.job_id


async def run(harness, data=DATA, **more):
    return await harness.ended(await submit(harness, data, **more))


async def given(harness, replaces):
    """Make the old volume and its seed, if the job is to replace them; count the target's steps from then on."""
    if replaces:
        assert (await run(harness, OLD_DATA)).status is Status.COMPLETED
    harness.target.steps.log.clear()


def at_second(harness, step, act):
    """Call ``act`` when the target enters ``step`` for the second time: first comes the volume's or the seed's."""
    times = 0

    async def counting():
        nonlocal times
        times += 1
        if times == 2:
            await act()

    harness.target.steps.act_at[step] = counting


async def failing():
    raise TargetError("broken")


def seed_of(harness):
    """Return the user data in the seed; None if there is no seed."""
    path = harness.target.folder / "web01-seed"
    return path.read_bytes()[26 * 2048 :].partition(b"\0")[0].decode() if path.exists() else None


def old_seed(replaces):
    return OLD_DATA.user_data if replaces else None


def job_of_volume(harness):
    found = harness.target._volume("web01")
    return None if found is None else found.provenance.job_id


async def assert_as_before(harness, replaces, before):
    assert seed_of(harness) == old_seed(replaces)
    assert job_of_volume(harness) == before
    assert list(await harness.target.kept()) == []
    harness.assert_nothing_left()


@pytest.mark.parametrize("replaces", [False, True])
async def test_volume_and_seed(harness, replaces):
    async with harness.running():
        await given(harness, replaces)
        job = await run(harness)
        assert job.status is Status.COMPLETED
        assert (job.seed.name, job.seed.size_bytes) == ("web01-seed", 4 * 2**20)
        assert (harness.volume(), seed_of(harness)) == (IMAGE, DATA.user_data)
        assert harness.target._volume("web01-seed").provenance.seed_of == "web01"
        assert list(await harness.target.kept()) == []
        harness.assert_nothing_left()


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("step", ["stage", "staged", "commit"])
async def test_failure(harness, replaces, step):
    """The seed is staged second and committed first; a failure of the second commit undoes the first."""
    async with harness.running():
        await given(harness, replaces)
        before = job_of_volume(harness)
        at_second(harness, step, failing)
        job = await run(harness)
        assert (job.status, job.error.partition(";")[0]) == (Status.FAILED, "broken")
        await assert_as_before(harness, replaces, before)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("step", ["stage", "staged"])
async def test_cancel_while_staging(harness, replaces, step):
    async with harness.running():
        await given(harness, replaces)
        before = job_of_volume(harness)
        at_second(harness, step, harness.target.steps.hang)
        job_id = await submit(harness)
        await harness.target.steps.reached.wait()
        assert (await harness.supervisor.cancel(job_id)).status is Status.CANCELLED
        await assert_as_before(harness, replaces, before)


@pytest.mark.parametrize("times", [1, 2])
async def test_cancel_between_the_commits(harness, times):
    """Once the seed's commit has begun it is too late: the job completes."""
    async with harness.running():
        seen = 0

        async def cancelling():
            nonlocal seen
            seen += 1
            if seen == times:
                next(iter(harness.supervisor._workers.active.values())).scope.cancel()

        harness.target.steps.act_at["commit"] = cancelling
        job = await run(harness)
        assert (job.status, seed_of(harness)) == (Status.COMPLETED, DATA.user_data)
        with pytest.raises(CancelError):
            await harness.supervisor.cancel(job.job_id)
        harness.assert_nothing_left()


@pytest.mark.parametrize("replaces", [False, True])
async def test_rollback_fails_until_the_restart(harness, replaces):
    """The data stays until the seed is settled, which the next start does."""
    async with harness.running():
        await given(harness, replaces)
        before = job_of_volume(harness)
        at_second(harness, "commit", failing)
        harness.target.steps.fail_at = {"remove": TargetUnavailableError("hangs")}
        job = await run(harness)
        assert job.status is Status.FAILED
        assert "could not settle the cloud-init seed of web01: hangs; it is retried at the next start" in job.error
    assert len(list((harness.folder / "cloud-init").iterdir())) == 1
    harness.target.steps.fail_at = {}
    async with harness.running():
        await assert_as_before(harness, replaces, before)
    assert list((harness.folder / "cloud-init").iterdir()) == []


async def test_old_seed_cannot_be_removed(harness):
    """The job has completed; the old seed's time is up later."""
    async with harness.running():
        await given(harness, True)
        harness.target.steps.fail_at = {"remove_kept": TargetUnavailableError("hangs")}
        job = await run(harness)
        assert (job.status, seed_of(harness)) == (Status.COMPLETED, DATA.user_data)
        (kept,) = await harness.target.kept()
        assert (kept.volume, kept.job_id) == ("web01-seed", job.job_id)


@pytest.mark.parametrize("late", [False, True])
async def test_guard_vetoes_the_seed(harness, late):
    """At the beginning and right before the commit."""
    async with harness.running():
        await given(harness, True)
        before = job_of_volume(harness)
        used = {"web01-seed": [VolumeUser("domain", "guest-7")]}

        async def start_guest():
            harness.guard.who_uses = used

        if late:
            at_second(harness, "staged", start_guest)
        else:
            harness.guard.who_uses = used
        job = await run(harness)
        assert "the volume web01-seed is in use by domain guest-7" in job.error
        assert ("staged" in harness.target.steps.log) == late
        await assert_as_before(harness, True, before)


async def test_seed_opened_before_its_commit(harness):
    async with harness.running():
        await given(harness, True)
        before = job_of_volume(harness)

        async def opened():
            harness.target.in_use.add("web01-seed")

        at_second(harness, "staged", opened)
        job = await run(harness)
        assert "volume web01-seed is in use" in job.error
        harness.target.in_use.clear()
        await assert_as_before(harness, True, before)


async def test_seed_is_never_placed_in_place(harness):
    async with harness.running():
        await given(harness, True)
        harness.target.replace = Placement.IN_PLACE
        job = await run(harness)
        assert "there is no room to stage a second cloud-init seed web01-seed" in job.error
        await assert_as_before(harness, True, job_of_volume(harness))


async def test_target_that_keeps_nothing(folder):
    """It can make a seed, but not replace one."""
    harness = Harness(folder, target=FakeTarget(folder / "main", name="main"))
    async with harness.running():
        at_second(harness, "commit", failing)
        assert (await run(harness)).status is Status.FAILED
        assert (harness.volume(), seed_of(harness)) == (None, None)
        harness.target.steps.act_at = {}
        assert (await run(harness)).status is Status.COMPLETED
        job = await run(harness)
        assert "target main cannot replace the cloud-init seed web01-seed; remove it first" in job.error
        harness.assert_nothing_left()


@pytest.mark.parametrize("made", [False, True])
async def test_target_does_not_answer_after_a_crash(harness, made, monkeypatch):
    """What the job made is found out when the target answers: the seed is rolled back, or belongs to the volume."""
    async with harness.running():
        job_id = await submit(harness)
        job = await harness.ended(job_id)
        await harness.store.put(msgspec.structs.replace(job, status=Status.RUNNING, seed=None, volume=None))
    if not made:
        (harness.target.folder / "web01").unlink()
    harness.supervisor._seeds.path(job_id).parent.mkdir(exist_ok=True)
    harness.supervisor._seeds.path(job_id).write_bytes(DATA.image(job_id, "web01", 0.0))
    harness.target.steps.fail_at = {"find": TargetUnavailableError("hangs")}
    async with harness.running():
        harness.target.steps.fail_at = {}
        job = await harness.ended(job_id)
        assert (job.status, job.seed.name, job.attempts) == (Status.COMPLETED, "web01-seed", 2)
        assert (harness.volume(), seed_of(harness)) == (IMAGE, DATA.user_data)
        assert ("commit" in harness.target.steps.log[-30:]) or made
        harness.assert_nothing_left()


async def test_client_that_hangs_up_leaves_no_data(harness):
    """A submit that fails in the store removes the data again."""
    async with harness.running():

        async def fail(job):
            raise TargetUnavailableError("full")

        harness.store.add = fail
        with pytest.raises(TargetUnavailableError):
            await submit(harness)
    assert list((harness.folder / "cloud-init").iterdir()) == []
    assert harness.supervisor._reservations._held == {}


async def test_leftover_data_is_removed_at_the_start(harness):
    """Of a job that was never stored, and of one that ended right before the service died."""
    async with harness.running():
        job = await run(harness)
    for job_id in (job.job_id, "00000000-0000-4000-8000-000000000000"):
        harness.supervisor._seeds.path(job_id).write_bytes(b"secret")
    async with harness.running():
        assert list((harness.folder / "cloud-init").iterdir()) == []
        assert (harness.volume(), seed_of(harness)) == (IMAGE, DATA.user_data)


async def test_settled_long_after_a_later_job(harness):
    """A seed that could not be rolled back is not put beside the volume of a later job."""
    async with harness.running():
        await given(harness, True)
        at_second(harness, "commit", failing)
        harness.target.steps.fail_at = {"remove": TargetUnavailableError("hangs")}
        await run(harness)
        harness.target.steps.fail_at, harness.target.steps.act_at = {}, {}
        later = CloudInit(user_data="later-user-data")
        assert (await run(harness, later)).status is Status.COMPLETED
    async with harness.running():
        assert seed_of(harness) == "later-user-data"
    assert list((harness.folder / "cloud-init").iterdir()) == []


async def test_seed_is_restored_whatever_the_clock_says(harness):
    """The old volume is dated later than the job that fails: the clock was set back in between."""
    async with harness.running():
        await given(harness, True)
        before = job_of_volume(harness)
        for name in ("web01", "web01-seed"):
            metadata = harness.target._metadata_path(name)
            found = msgspec.json.decode(metadata.read_bytes())
            metadata.write_bytes(msgspec.json.encode({**found, "created_at": found["created_at"] + 1e6}))
        at_second(harness, "commit", failing)
        assert (await run(harness)).status is Status.FAILED
        await assert_as_before(harness, True, before)
