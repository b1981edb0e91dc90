"""Jobs accepted, given slots, cancelled, drained and found again, over the real pipeline and fakes."""

import msgspec
import pytest
import trio
import trio.testing

from provisioner.contracts import Duration
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
from provisioner.jobs.announce import Announcer
from tests.cancellation.lab import IMAGE, OTHER_SPEC, SPEC, Lab


def spec(name, **more):
    return msgspec.structs.replace(SPEC, volume_name=name, **more)


def limited(lab, **more):
    lab.jobs = msgspec.structs.replace(lab.jobs, **more)
    return lab


async def stored(lab):
    return (await lab.store.page(JobFilter(), 0, 100))[0]


# --- slots ---


@pytest.mark.parametrize("slots", [1, 3])
async def test_never_more_at_once_than_the_config_says(folder, slots):
    lab = limited(Lab(folder), max_concurrent=slots)
    most = 0
    stat = lab.source.stat

    async def counting(url):
        nonlocal most
        most = max(most, len(lab.supervisor._slots.running()))
        await trio.testing.wait_all_tasks_blocked(0.001)
        most = max(most, len(lab.supervisor._slots.running()))
        return await stat(url)

    lab.source.stat = counting
    async with lab.running():
        ids = [await lab.submit(spec(f"v{number}")) for number in range(7)]
        assert lab.supervisor.active_count == 7
        assert [(await lab.ended(job_id)).status for job_id in ids] == [Status.COMPLETED] * 7
        assert most == slots
        assert lab.supervisor.active_count == 0
        assert lab.metrics.active_jobs._value.get() == lab.metrics.queue_depth._value.get() == 0
        lab.assert_nothing_left()


async def hold_the_slot(lab):
    """One job in the only slot, until ``let_go``."""
    lab.source.steps.hang_at = "stat"
    job_id = await lab.submit(spec("holder"))
    await lab.source.steps.reached.wait()
    lab.source.steps.hang_at = None
    return job_id


async def test_the_urgent_before_the_early(folder):
    lab = limited(Lab(folder), max_concurrent=1)
    async with lab.running():
        holder = await hold_the_slot(lab)
        ids = [await lab.submit(spec(f"v{n}", priority=n % 3)) for n in range(6)]
        await lab.supervisor.cancel(holder)
        jobs = [await lab.ended(job_id) for job_id in ids]
        order = sorted(jobs, key=lambda job: job.updated_at)
        assert [job.spec.volume_name for job in order] == ["v2", "v5", "v1", "v4", "v0", "v3"]


async def test_a_job_s_crash_is_its_own(folder):
    """A bug in one leaves the slots to the others."""
    lab = limited(Lab(folder), max_concurrent=1)
    lab.source.steps.fail_at = {"stat": KeyError("bug")}
    async with lab.running():
        job = await lab.run()
        assert (job.status, job.error) == (Status.FAILED, "internal error (KeyError)")
        lab.source.steps.fail_at = {}
        assert (await lab.run()).status is Status.COMPLETED


# --- accepting ---


async def test_an_accepted_job_is_on_disk(folder):
    lab = limited(Lab(folder), max_concurrent=1)
    async with lab.running():
        await hold_the_slot(lab)
        job_id = await lab.submit()
        assert (await lab.store.get(job_id)).status is Status.PENDING


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image_url": "https://elsewhere.example.com/x"}, UrlNotAllowedError),
        ({"image_url": "file:///etc/passwd"}, InvalidRequestError),
        ({"image_type": "floppy"}, InvalidRequestError),
        ({"target": "nowhere"}, InvalidRequestError),
        ({"volume_name": "../x"}, VolumeNameError),
        ({"checksum": "md5:1"}, InvalidRequestError),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_kept(folder, change, error):
    lab = Lab(folder)
    async with lab.running():
        with pytest.raises(error):
            await lab.submit(msgspec.structs.replace(SPEC, **change))
        assert await stored(lab) == []
        assert lab.source.steps.log == []


async def test_a_full_queue_sends_away(folder):
    lab = limited(Lab(folder), max_concurrent=1, max_queued=2)
    async with lab.running():
        await hold_the_slot(lab)
        await lab.submit(spec("a"))
        waiting = await lab.submit(spec("b"))
        with pytest.raises(TooManyRequestsError, match="2 jobs are waiting"):
            await lab.submit(spec("c"))
        await lab.supervisor.cancel(waiting)
        await lab.submit(spec("c"))
        assert len(await stored(lab)) == 4


async def test_one_job_for_a_volume_at_a_time(folder):
    """Whether it waits or runs; another target's volume of that name is another volume."""
    lab = limited(Lab(folder), max_concurrent=1)
    async with lab.running():
        holder = await hold_the_slot(lab)
        waiting = await lab.submit()
        for name, first, status in [("holder", holder, "running"), ("web01", waiting, "pending")]:
            with pytest.raises(ConflictError, match=f"job {first} for the volume {name} is still {status}"):
                await lab.submit(spec(name))
        await lab.submit(msgspec.structs.replace(OTHER_SPEC, volume_name="web01"))
        await lab.supervisor.cancel(holder)
        await lab.ended(waiting)
        assert (await lab.run()).status is Status.COMPLETED


async def test_the_default_target_s_volume_is_the_same_volume(folder):
    lab = limited(Lab(folder), max_concurrent=1)
    async with lab.running():
        await hold_the_slot(lab)
        await lab.submit(spec("a", target=None))
        with pytest.raises(ConflictError):
            await lab.submit(spec("a", target="main"))


async def test_a_key_makes_a_request_one(folder):
    """The same body gets the same job, also when it has ended, also when both come at once; another body does not."""
    lab = Lab(folder)
    async with lab.running():
        ids = []

        async def ask():
            ids.append(await lab.submit(key="k"))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert len(set(ids)) == 1
        await lab.ended(ids[0])
        assert await lab.submit(key="k") == ids[0]
        with pytest.raises(ConflictError, match=f"used for another request, job {ids[0]}"):
            await lab.submit(spec("web02"), key="k")
        other = await lab.supervisor.submit(SPEC, request_id="r", principal="somebody else", idempotency_key="k")
        assert other.job_id != ids[0]
        assert len(await stored(lab)) == 2


async def test_a_client_that_hangs_up_leaves_a_whole_job_or_none(folder):
    """Cancelled at each of the first awaits of a submit in turn."""
    lab = limited(Lab(folder), max_concurrent=1)
    async with lab.running():
        await hold_the_slot(lab)
        for patience in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lab.submit, spec(f"v{patience}"), f"k{patience}")
                    for _ in range(patience):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        on_disk = {job.job_id for job in await lab.store.unfinished()}
        assert on_disk == lab.supervisor.active_ids


# --- the store fails ---


class BrokenError(UnavailableError):
    def __init__(self):
        super().__init__("the job store cannot be used: disk I/O error")


async def fail(*_):
    await trio.lowlevel.checkpoint()
    raise BrokenError


async def test_without_a_store_nothing_is_accepted(folder, monkeypatch):
    lab = Lab(folder)
    async with lab.running():
        add = lab.store.add
        monkeypatch.setattr(lab.store, "add", fail)
        with pytest.raises(BrokenError):
            await lab.submit()
        assert lab.supervisor.active_count == 0
        monkeypatch.setattr(lab.store, "add", add)
        assert (await lab.run()).status is Status.COMPLETED


# --- cancelling ---


async def test_a_waiting_job_is_cancelled_without_having_run(folder):
    lab = limited(Lab(folder), max_concurrent=1)
    async with lab.running():
        holder = await hold_the_slot(lab)
        job_id = await lab.submit()
        job = await lab.supervisor.cancel(job_id)
        assert (job.status, job.attempts) == (Status.CANCELLED, 0)
        assert (await lab.store.get(job_id)).status is Status.CANCELLED
        await lab.supervisor.cancel(holder)
        assert (await lab.run()).status is Status.COMPLETED


async def test_what_cannot_be_cancelled_says_why(folder):
    lab = Lab(folder)
    async with lab.running():
        job = await lab.run()
        with pytest.raises(CancelError, match="cannot cancel job in 'completed' status"):
            await lab.supervisor.cancel(job.job_id)
        for ask in (lab.supervisor.cancel, lab.supervisor.find):
            with pytest.raises(JobNotFoundError):
                await ask("no such job")


# --- stopping and starting ---


async def test_draining_takes_no_job_from_anywhere(folder):
    """Running ones may end; waiting ones wait on, on disk, and can be cancelled."""
    lab = limited(Lab(folder), max_concurrent=1, shutdown_grace=Duration(20))
    async with lab.running():
        lab.converter.steps.hang_at = "flush"
        running = await lab.submit()
        waiting = await lab.submit(spec("web02"))
        unwanted = await lab.submit(spec("web03"))
        await lab.converter.steps.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.supervisor.drain)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(UnavailableError, match="stopping"):
                await lab.submit(spec("web04"))
            await lab.supervisor.cancel(unwanted)
            await lab.supervisor.cancel(running)
        assert (await lab.store.get(waiting)).attempts == 0
    lab.converter.steps.hang_at = None
    async with lab.running():
        assert (await lab.ended(waiting)).status is Status.COMPLETED
        assert (await lab.store.get(unwanted)).status is Status.CANCELLED


async def test_a_running_job_may_end_in_the_grace(folder):
    lab = limited(Lab(folder), shutdown_grace=Duration(20))
    async with lab.running():
        job_id = await lab.submit()
        while not lab.supervisor._slots.running():
            await trio.lowlevel.checkpoint()
        await lab.supervisor.drain()
        assert (await lab.store.get(job_id)).status is Status.COMPLETED


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
async def test_jobs_are_found_after_a_crash(folder, settings, crashes, status):
    lab = limited(Lab(folder), **settings)
    lab.source.steps.hang_at = "stat"
    async with lab.running():
        job_id = await lab.submit()
    async with lab.only_store() as store:
        job = await store.get(job_id)
        await store.put(msgspec.structs.replace(job, status=Status.RUNNING, attempts=crashes))
    debris = lab.target._stages / f"{job_id}~web01"
    debris.write_bytes(b"half a volume")
    lab.source.steps.hang_at = None
    async with lab.running():
        job = await lab.ended(job_id)
        assert job.status is status
        assert lab.volume() == (IMAGE if status is Status.COMPLETED else None)
        assert (job.error is None) or "the service ended while the job ran" in job.error
        lab.assert_nothing_left()


async def test_waiting_jobs_keep_their_order_over_a_restart(folder):
    lab = limited(Lab(folder), max_concurrent=1)
    async with lab.running():
        await hold_the_slot(lab)
        ids = [await lab.submit(spec(f"v{n}", priority=n // 2)) for n in range(4)]
    async with lab.running():
        jobs = [await lab.ended(job_id) for job_id in ids]
        order = sorted(jobs, key=lambda job: job.updated_at)
        assert [job.spec.volume_name for job in order] == ["v2", "v3", "v0", "v1"]


async def test_a_target_that_cannot_be_recovered_is_tried_before_its_first_job(folder):
    """The other targets work; this one's jobs fail until it can."""
    lab = Lab(folder)
    lab.target.steps.fail_at = {"recover": TargetUnavailableError("the volume group is not there")}
    async with lab.running():
        assert (await lab.run(OTHER_SPEC)).status is Status.COMPLETED
        assert (await lab.run()).error == "the volume group is not there"
        lab.target.steps.fail_at = {}
        assert (await lab.run()).status is Status.COMPLETED


# --- removing volumes ---


async def test_a_volume_is_removed_only_while_nobody_works_on_or_with_it(folder):
    lab = Lab(folder)
    async with lab.running():
        assert (await lab.run()).status is Status.COMPLETED
        lab.guard.who_uses["web01"] = [VolumeUser("domain", "db1")]
        with pytest.raises(VolumeInUseError, match="domain db1"):
            await lab.supervisor.remove_volume("main", "web01")
        lab.guard.who_uses.clear()
        lab.source.steps.hang_at = "stat"
        job_id = await lab.submit()
        await lab.source.steps.reached.wait()
        with pytest.raises(ConflictError, match=job_id):
            await lab.supervisor.remove_volume("main", "web01")
        await lab.supervisor.cancel(job_id)
        lab.target.steps.hang_at = "remove"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lab.supervisor.remove_volume, "main", "web01")
            await lab.target.steps.reached.wait()
            with pytest.raises(ConflictError, match="is being removed"):
                await lab.submit()
            nursery.cancel_scope.cancel()
        lab.target.steps.hang_at = None
        await lab.supervisor.remove_volume("main", "web01")
        assert lab.volume() is None
        for target in ("main", "nowhere"):
            with pytest.raises(NotFoundError):
                await lab.supervisor.remove_volume(target, "web01")


# --- telling ---


async def test_observers_hear_of_every_change_and_hold_nobody_up(folder):
    good, stuck = FakeObserver(), FakeObserver(hang_at="job_changed")
    broken = FakeObserver(fail_at={"job_changed": OSError("unreachable")})
    lab = Lab(folder)
    async with lab.running(), trio.open_nursery() as nursery:
        announcer = Announcer({"good": good, "stuck": stuck, "broken": broken})
        await nursery.start(announcer.run)
        lab.supervisor._slots._announcer = announcer
        job = await lab.run()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert job.status is Status.COMPLETED
    assert (good.events[0].status, good.events[0].stage) == ("pending", "queued")
    assert (good.events[-1].status, good.events[-1].percent) == ("completed", 100.0)
    assert len(broken.events) == len(good.events)
    assert len(stuck.events) == 1
    percents = [event.percent for event in good.events]
    assert percents == sorted(percents)
