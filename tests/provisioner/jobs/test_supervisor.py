"""Accepting, running, cancelling, draining and recovering jobs, over the real pipeline and fakes."""

import msgspec
import pytest
import trio
import trio.testing

from provisioner.contracts import Duration, ImageUrl
from provisioner.contracts.errors import (
    CancelError,
    ConflictError,
    InvalidRequestError,
    JobNotFoundError,
    NotFoundError,
    TargetUnavailableError,
    TooManyRequestsError,
    UnavailableError,
    UrlNotAllowedError,
    VolumeInUseError,
    VolumeNameError,
)
from provisioner.contracts.testing import FakeObserver
from provisioner.contracts.types import VolumeUser
from provisioner.jobs import JobFilter, Status
from provisioner.jobs.notify import Notifier
from tests.cancellation.harness import IMAGE, OTHER_SPEC, SPEC, Harness


def spec(name, **more):
    return msgspec.structs.replace(SPEC, volume_name=name, **more)


def limited(harness, **more):
    harness.jobs = msgspec.structs.replace(harness.jobs, **more)
    return harness


async def stored(harness):
    return (await harness.store.page(JobFilter(), 0, 100))[0]


# --- workers ---


@pytest.mark.parametrize("slots", [1, 3])
async def test_workers_respect_max_concurrent(folder, slots):
    harness = limited(Harness(folder), max_concurrent=slots)
    most = 0
    stat = harness.source.stat

    async def counting(url):
        nonlocal most
        most = max(most, len(harness.supervisor._workers.running()))
        await trio.testing.wait_all_tasks_blocked(0.001)
        most = max(most, len(harness.supervisor._workers.running()))
        return await stat(url)

    harness.source.stat = counting
    async with harness.running():
        ids = [await harness.submit(spec(f"v{number}")) for number in range(7)]
        assert harness.supervisor.active_count == 7
        assert [(await harness.ended(job_id)).status for job_id in ids] == [Status.COMPLETED] * 7
        assert most == slots
        assert harness.supervisor.active_count == 0
        assert harness.metrics.active_jobs._value.get() == harness.metrics.queue_depth._value.get() == 0
        harness.assert_nothing_left()


async def hold_the_slot(harness):
    """Occupy the only worker with a job until ``let_go``."""
    harness.source.steps.hang_at = "stat"
    job_id = await harness.submit(spec("holder"))
    await harness.source.steps.reached.wait()
    harness.source.steps.hang_at = None
    return job_id


async def test_queue_serves_priority_first(folder):
    harness = limited(Harness(folder), max_concurrent=1)
    async with harness.running():
        holder = await hold_the_slot(harness)
        ids = [await harness.submit(spec(f"v{n}", priority=n % 3)) for n in range(6)]
        await harness.supervisor.cancel(holder)
        jobs = [await harness.ended(job_id) for job_id in ids]
        order = sorted(jobs, key=lambda job: job.updated_at)
        assert [job.spec.volume_name for job in order] == ["v2", "v5", "v1", "v4", "v0", "v3"]


async def test_internal_error_leaves_other_jobs_alone(folder):
    """A bug in one job does not take a worker from the others."""
    harness = limited(Harness(folder), max_concurrent=1)
    harness.source.steps.fail_at = {"stat": KeyError("bug")}
    async with harness.running():
        job = await harness.run()
        assert (job.status, job.error) == (Status.FAILED, "internal error (KeyError)")
        harness.source.steps.fail_at = {}
        assert (await harness.run()).status is Status.COMPLETED


# --- accepting ---


async def test_accepted_job_is_on_disk(folder):
    harness = limited(Harness(folder), max_concurrent=1)
    async with harness.running():
        await hold_the_slot(harness)
        job_id = await harness.submit()
        assert (await harness.store.get(job_id)).status is Status.PENDING


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image_url": ImageUrl.parse("https://elsewhere.example.com/x")}, UrlNotAllowedError),
        ({"image_format": "floppy"}, InvalidRequestError),
        ({"target": "nowhere"}, InvalidRequestError),
        ({"volume_name": "../x"}, VolumeNameError),
    ],
)
async def test_submit_of_an_invalid_job(folder, change, error):
    harness = Harness(folder)
    async with harness.running():
        with pytest.raises(error):
            await harness.submit(msgspec.structs.replace(SPEC, **change))
        assert await stored(harness) == []
        assert harness.source.steps.log == []


async def test_submit_to_a_full_queue(folder):
    harness = limited(Harness(folder), max_concurrent=1, max_queued=2)
    async with harness.running():
        await hold_the_slot(harness)
        await harness.submit(spec("a"))
        waiting = await harness.submit(spec("b"))
        with pytest.raises(TooManyRequestsError, match="2 jobs are waiting"):
            await harness.submit(spec("c"))
        await harness.supervisor.cancel(waiting)
        await harness.submit(spec("c"))
        assert len(await stored(harness)) == 4


async def test_submit_for_a_busy_volume(folder):
    """Whether the job waits or runs. The same name on another target is another volume."""
    harness = limited(Harness(folder), max_concurrent=1)
    async with harness.running():
        holder = await hold_the_slot(harness)
        waiting = await harness.submit()
        for name, first, status in [("holder", holder, "running"), ("web01", waiting, "pending")]:
            with pytest.raises(ConflictError, match=f"job {first} for the volume {name} is still {status}"):
                await harness.submit(spec(name))
        await harness.submit(msgspec.structs.replace(OTHER_SPEC, volume_name="web01"))
        await harness.supervisor.cancel(holder)
        await harness.ended(waiting)
        assert (await harness.run()).status is Status.COMPLETED


async def test_submit_for_a_busy_default_target_volume(folder):
    harness = limited(Harness(folder), max_concurrent=1)
    async with harness.running():
        await hold_the_slot(harness)
        await harness.submit(spec("a", target=None))
        with pytest.raises(ConflictError):
            await harness.submit(spec("a", target="main"))


async def test_submit_twice_with_one_key(folder):
    """The same body gets the same job, even if it has ended or both come at once; another body is refused."""
    harness = Harness(folder)
    async with harness.running():
        ids = []

        async def ask():
            ids.append(await harness.submit(key="k"))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert len(set(ids)) == 1
        await harness.ended(ids[0])
        assert await harness.submit(key="k") == ids[0]
        with pytest.raises(ConflictError, match=f"used for another request, job {ids[0]}"):
            await harness.submit(spec("web02"), key="k")
        other = await harness.supervisor.submit(SPEC, request_id="r", principal="somebody else", idempotency_key="k")
        assert other.job_id != ids[0]
        assert len(await stored(harness)) == 2


async def test_submit_cancelled_at_every_step(folder):
    """Each of the first awaits of a submit is cancelled in turn: a whole job or none."""
    harness = limited(Harness(folder), max_concurrent=1)
    async with harness.running():
        await hold_the_slot(harness)
        for patience in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(harness.submit, spec(f"v{patience}"), f"k{patience}")
                    for _ in range(patience):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        on_disk = {job.job_id for job in await harness.store.unfinished()}
        assert on_disk == harness.supervisor.active_ids


# --- the store fails ---


class BrokenError(UnavailableError):
    def __init__(self):
        super().__init__("the job store cannot be used: disk I/O error")


async def fail(*_):
    await trio.lowlevel.checkpoint()
    raise BrokenError


async def test_submit_while_store_is_unavailable(folder, monkeypatch):
    harness = Harness(folder)
    async with harness.running():
        add = harness.store.add
        monkeypatch.setattr(harness.store, "add", fail)
        with pytest.raises(BrokenError):
            await harness.submit()
        assert harness.supervisor.active_count == 0
        monkeypatch.setattr(harness.store, "add", add)
        assert (await harness.run()).status is Status.COMPLETED


# --- cancelling ---


async def test_cancel_of_a_waiting_job(folder):
    harness = limited(Harness(folder), max_concurrent=1)
    async with harness.running():
        holder = await hold_the_slot(harness)
        job_id = await harness.submit()
        job = await harness.supervisor.cancel(job_id)
        assert (job.status, job.attempts) == (Status.CANCELLED, 0)
        assert (await harness.store.get(job_id)).status is Status.CANCELLED
        await harness.supervisor.cancel(holder)
        assert (await harness.run()).status is Status.COMPLETED


async def test_cancel_that_comes_too_late(folder):
    harness = Harness(folder)
    async with harness.running():
        job = await harness.run()
        with pytest.raises(CancelError, match="cannot cancel job in 'completed' status"):
            await harness.supervisor.cancel(job.job_id)
        for ask in (harness.supervisor.cancel, harness.supervisor.find):
            with pytest.raises(JobNotFoundError):
                await ask("no such job")


# --- stopping and starting ---


async def test_drain_accepts_and_starts_no_jobs(folder):
    """Running jobs may end; waiting ones stay queued on disk and can be cancelled."""
    harness = limited(Harness(folder), max_concurrent=1, shutdown_grace=Duration(20))
    async with harness.running():
        harness.converter.steps.hang_at = "flush"
        running = await harness.submit()
        waiting = await harness.submit(spec("web02"))
        unwanted = await harness.submit(spec("web03"))
        await harness.converter.steps.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.supervisor.drain)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(UnavailableError, match="stopping"):
                await harness.submit(spec("web04"))
            await harness.supervisor.cancel(unwanted)
            await harness.supervisor.cancel(running)
        assert (await harness.store.get(waiting)).attempts == 0
    harness.converter.steps.hang_at = None
    async with harness.running():
        assert (await harness.ended(waiting)).status is Status.COMPLETED
        assert (await harness.store.get(unwanted)).status is Status.CANCELLED


async def test_drain_waits_for_running_jobs(folder):
    harness = limited(Harness(folder), shutdown_grace=Duration(20))
    async with harness.running():
        job_id = await harness.submit()
        while not harness.supervisor._workers.running():
            await trio.lowlevel.checkpoint()
        await harness.supervisor.drain()
        assert (await harness.store.get(job_id)).status is Status.COMPLETED


@pytest.mark.parametrize(
    ("settings", "crashes", "status"),
    [
        ({}, 1, Status.COMPLETED),
        ({"max_attempts": 2}, 1, Status.COMPLETED),
        ({"max_attempts": 2}, 2, Status.FAILED),
        ({"max_attempts": 1}, 1, Status.FAILED),
        ({"on_restart": "fail"}, 1, Status.FAILED),
    ],
)
async def test_recover_after_crashes(folder, settings, crashes, status):
    harness = limited(Harness(folder), **settings)
    harness.source.steps.hang_at = "stat"
    async with harness.running():
        job_id = await harness.submit()
    async with harness.only_store() as store:
        job = await store.get(job_id)
        await store.put(msgspec.structs.replace(job, status=Status.RUNNING, attempts=crashes))
    leftovers = harness.target._stages / f"{job_id}~web01"
    leftovers.write_bytes(b"half a volume")
    harness.source.steps.hang_at = None
    async with harness.running():
        job = await harness.ended(job_id)
        assert job.status is status
        assert harness.volume() == (IMAGE if status is Status.COMPLETED else None)
        assert (job.error is None) or "the service ended while the job ran" in job.error
        harness.assert_nothing_left()


async def test_restart_keeps_order_of_waiting_jobs(folder):
    harness = limited(Harness(folder), max_concurrent=1)
    async with harness.running():
        await hold_the_slot(harness)
        ids = [await harness.submit(spec(f"v{n}", priority=n // 2)) for n in range(4)]
    async with harness.running():
        jobs = [await harness.ended(job_id) for job_id in ids]
        order = sorted(jobs, key=lambda job: job.updated_at)
        assert [job.spec.volume_name for job in order] == ["v2", "v3", "v0", "v1"]


async def test_unrecovered_target_is_recovered_first(folder):
    """Other targets work; this one's jobs fail until it is recovered."""
    harness = Harness(folder)
    harness.target.steps.fail_at = {"recover": TargetUnavailableError("the volume group is not there")}
    async with harness.running():
        assert (await harness.run(OTHER_SPEC)).status is Status.COMPLETED
        assert (await harness.run()).error == "the volume group is not there"
        harness.target.steps.fail_at = {}
        assert (await harness.run()).status is Status.COMPLETED


# --- removing volumes ---


async def test_remove_volume_in_use_or_with_a_job(folder):
    harness = Harness(folder)
    async with harness.running():
        assert (await harness.run()).status is Status.COMPLETED
        harness.guard.who_uses["web01"] = [VolumeUser("domain", "db1")]
        with pytest.raises(VolumeInUseError, match="domain db1"):
            await harness.supervisor.remove_volume("main", "web01")
        harness.guard.who_uses.clear()
        harness.source.steps.hang_at = "stat"
        job_id = await harness.submit(msgspec.structs.replace(SPEC, checksum=None))
        await harness.source.steps.reached.wait()
        with pytest.raises(ConflictError, match=job_id):
            await harness.supervisor.remove_volume("main", "web01")
        await harness.supervisor.cancel(job_id)
        harness.target.steps.hang_at = "remove"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.supervisor.remove_volume, "main", "web01")
            await harness.target.steps.reached.wait()
            with pytest.raises(ConflictError, match="is being removed"):
                await harness.submit()
            nursery.cancel_scope.cancel()
        harness.target.steps.hang_at = None
        await harness.supervisor.remove_volume("main", "web01")
        assert harness.volume() is None
        for target in ("main", "nowhere"):
            with pytest.raises(NotFoundError):
                await harness.supervisor.remove_volume(target, "web01")


# --- observers ---


async def test_observers_are_not_waited_for(folder):
    good, stuck = FakeObserver(), FakeObserver(hang_at="job_changed")
    broken = FakeObserver(fail_at={"job_changed": OSError("unreachable")})
    harness = Harness(folder)
    async with harness.running(), trio.open_nursery() as nursery:
        notifier = Notifier({"good": good, "stuck": stuck, "broken": broken})
        await nursery.start(notifier.run)
        harness.supervisor._workers._notifier = notifier
        job = await harness.run()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert job.status is Status.COMPLETED
    assert (good.events[0].status, good.events[0].stage) == ("pending", "queued")
    assert (good.events[-1].status, good.events[-1].percent) == ("completed", 100.0)
    assert len(broken.events) == len(good.events)
    assert len(stuck.events) == 1
    percents = [event.percent for event in good.events]
    assert percents == sorted(percents)
