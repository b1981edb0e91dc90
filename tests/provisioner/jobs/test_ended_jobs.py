"""Ends that could not be stored: they are not reported, they are retried, and no restart runs overtaken jobs."""

import subprocess
import sys
import threading
from contextlib import contextmanager

import msgspec
import pytest
import trio
import trio.testing

from provisioner.contracts.errors import (
    CancelError,
    ConflictError,
    ConvertError,
    TargetUnavailableError,
    UnavailableError,
)
from provisioner.jobs import JobFilter, Status
from provisioner.jobs import ended_jobs as ends_module
from provisioner.jobs import workers as slots_module
from tests.cancellation.harness import IMAGE, SPEC, Harness

GUEST = b"what the guest wrote"
HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
db.execute("ROLLBACK")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shorten pauses and timeouts."""
    monkeypatch.setattr(ends_module, "PAUSES", (0.01,))
    monkeypatch.setattr(slots_module, "PAUSES", (0.01,))
    monkeypatch.setattr(slots_module, "_STORE_TIMEOUT", 0.05)


@contextmanager
def locked(harness):
    """Hold the write lock of the database, as another process would."""
    harness.store._db.execute("PRAGMA busy_timeout = 1")
    command = [sys.executable, "-c", HOLDER, str(harness.folder / "jobs.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        yield


async def unstored(harness):
    """Wait until an end could not be stored."""
    while harness.supervisor.unstored() is None:
        await trio.lowlevel.checkpoint()


class Gate:
    """Holds a fake at a step until it is opened."""

    def __init__(self, steps, step):
        self.reached, self._open = trio.Event(), trio.Event()
        steps.hang_at, steps.hang = step, self._hang

    async def _hang(self):
        self.reached.set()
        await self._open.wait()

    def open(self):
        self._open.set()


async def held_job(harness, fake, step, spec=SPEC):
    """Return a job that waits at ``step``, and its gate."""
    gate = Gate(harness.steps(fake), step)
    job_id = await harness.submit(spec)
    await gate.reached.wait()
    return job_id, gate


async def old_store(harness, *jobs):
    """Create a store as an earlier run might have left it."""
    async with harness.only_store() as store:
        for job in jobs:
            await store.put(job)


def write_as_guest(harness):
    with (harness.target.folder / "web01").open("r+b") as file:
        file.write(GUEST)


def guest_data(harness):
    with (harness.target.folder / "web01").open("rb") as file:
        return file.read(len(GUEST))


async def test_cancel_of_job_that_cannot_stop(folder, monkeypatch):
    """A thread hangs on the disk: the client gets an answer, and the job is cancelled once the disk answers."""
    monkeypatch.setattr(slots_module, "_STOP_TIMEOUT", 0.05)
    harness = Harness(folder)
    disk_answers, hangs = threading.Event(), trio.Event()

    async def hang():
        with trio.CancelScope(shield=True):
            hangs.set()
            await trio.to_thread.run_sync(disk_answers.wait)

    steps = harness.steps("converter")
    steps.hang_at, steps.hang = "flush", hang
    async with harness.running():
        job_id = await harness.submit()
        await hangs.wait()
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"being cancelled, but has not stopped within 0\.05 s"):
                await harness.supervisor.cancel(job_id)
        assert (await harness.supervisor.find(job_id))[0].status is Status.RUNNING
        with pytest.raises(ConflictError, match=job_id):
            await harness.submit()
        disk_answers.set()
        assert (await harness.ended(job_id)).status is Status.CANCELLED
        harness.assert_nothing_left()


async def test_completed_is_reported_once_stored(folder):
    """The volume exists but the store is locked: the job still runs, its name stays reserved, readiness says why."""
    harness = Harness(folder)
    async with harness.running():
        told = []
        harness.supervisor._workers._on_end = told.append
        job_id, gate = await held_job(harness, "converter", "flush")
        with locked(harness):
            gate.open()
            await unstored(harness)
            assert harness.volume() == IMAGE
            assert (await harness.supervisor.find(job_id))[0].status is Status.RUNNING
            assert (await harness.store.page(JobFilter(status="completed"), 0, 9))[1] == 0
            assert f"the end of job {job_id} could not be stored yet" in harness.supervisor.unstored()
            assert "locked" in harness.supervisor.unstored()
            assert harness.metrics.jobs.labels("completed")._value.get() == 0
            assert told == []
            for ask in (harness.submit(), harness.supervisor.remove_volume("main", "web01")):
                with pytest.raises(ConflictError, match=job_id):
                    await ask
            with pytest.raises(UnavailableError, match="the job has stopped, but"):
                await harness.supervisor.cancel(job_id)
        assert (await harness.ended(job_id)).status is Status.COMPLETED
        assert harness.supervisor.unstored() is None
        assert harness.metrics.jobs.labels("completed")._value.get() == 1
        assert [job.job_id for job in told] == [job_id]
        await harness.supervisor.remove_volume("main", "web01")


async def test_failed_on_a_full_disk(folder):
    """The database cannot grow (SQLite says "database or disk is full"); the end is stored once there is room."""
    harness = Harness(folder)
    harness.converter.steps.fail_at = {"flush": ConvertError("x" * 100_000)}
    async with harness.running():
        job_id, gate = await held_job(harness, "source", "stat")
        (pages,) = harness.store._db.execute("PRAGMA page_count").fetchone()
        harness.store._db.execute(f"PRAGMA max_page_count = {pages}")
        gate.open()
        await unstored(harness)
        assert "full" in harness.supervisor.unstored()
        assert (await harness.supervisor.find(job_id))[0].status is Status.RUNNING
        harness.store._db.execute("PRAGMA max_page_count = 100000")
        assert (await harness.ended(job_id)).status is Status.FAILED
        harness.assert_nothing_left()


async def test_cancel_returns_once_stored(folder):
    """503 while the store is locked, for running and waiting jobs; the end is stored later."""
    harness = Harness(folder)
    harness.jobs = msgspec.structs.replace(harness.jobs, max_concurrent=1)
    async with harness.running():
        running, _ = await held_job(harness, "source", "stat")
        waiting = await harness.submit(msgspec.structs.replace(SPEC, volume_name="web02"))
        with locked(harness):
            for job_id, status in [(waiting, Status.PENDING), (running, Status.RUNNING)]:
                for _ in range(2):  # a second request gets the same answer
                    with pytest.raises(UnavailableError, match="the job has stopped, but"):
                        await harness.supervisor.cancel(job_id)
                assert (await harness.supervisor.find(job_id))[0].status is status
            assert "2 jobs" in harness.supervisor.unstored()
            assert harness.supervisor.active_count == 2
        for job_id in (waiting, running):
            assert (await harness.ended(job_id)).status is Status.CANCELLED
            with pytest.raises(CancelError, match="'cancelled' status"):
                await harness.supervisor.cancel(job_id)
        assert harness.supervisor.active_count == 0
        assert len(harness.supervisor._reservations) == 0


async def test_cancel_while_a_failure_is_stored(folder, monkeypatch):
    """The job failed by itself: the cancel came too late, which is no error of the service."""
    monkeypatch.setattr(slots_module, "_STORE_TIMEOUT", 60)
    harness = Harness(folder)
    harness.converter.steps.fail_at = {"flush": ConvertError("the disk is broken")}
    async with harness.running(), trio.open_nursery() as nursery:
        job_id, gate = await held_job(harness, "source", "stat")
        asked, refused = trio.Event(), trio.Event()

        async def cancel():
            asked.set()
            with pytest.raises(CancelError, match="cannot cancel job in 'failed' status"):
                await harness.supervisor.cancel(job_id)
            refused.set()

        with locked(harness):
            gate.open()
            await unstored(harness)
            nursery.start_soon(cancel)
            await asked.wait()
        await refused.wait()


async def test_cancel_by_a_client_that_hangs_up(folder):
    """The job ends although the client is gone, and does not run again."""
    harness = Harness(folder)
    harness.jobs = msgspec.structs.replace(harness.jobs, max_concurrent=1)
    async with harness.running():
        await held_job(harness, "source", "stat")
        waiting = await harness.submit(msgspec.structs.replace(SPEC, volume_name="web02"))
        active = harness.supervisor._workers.active[waiting]
        with locked(harness), trio.CancelScope() as client:
            client.cancel()
            await harness.supervisor.cancel(waiting)
        assert client.cancelled_caught
        await active.ended.wait()
        assert (await harness.store.get(waiting)).status is Status.CANCELLED
    async with harness.running():
        assert waiting not in harness.supervisor.active_ids


async def test_start_waits_for_the_store(folder):
    """A locked store does not fail the job: it starts once that can be stored, and can be cancelled before."""
    harness = Harness(folder)
    harness.jobs = msgspec.structs.replace(harness.jobs, max_concurrent=1)
    async with harness.running():
        holder, gate = await held_job(harness, "source", "stat")
        ids = [await harness.submit(msgspec.structs.replace(SPEC, volume_name=f"v{n}")) for n in range(2)]
        harness.source.steps.hang_at = None
        with locked(harness):
            gate.open()
            await unstored(harness)
            while (await harness.supervisor.find(ids[0]))[0].status is not Status.RUNNING:
                await trio.lowlevel.checkpoint()
            with pytest.raises(UnavailableError):
                await harness.supervisor.cancel(ids[0])
            assert harness.volume("v0") is None
        statuses = [(await harness.ended(job_id)).status for job_id in (holder, *ids)]
        assert statuses == [Status.COMPLETED, Status.CANCELLED, Status.COMPLETED]


async def test_listener_that_fails_at_an_end(folder):
    """Its error is logged; other jobs continue."""

    def broken(job):
        raise RuntimeError("no disk for the audit log")

    harness = Harness(folder)
    async with harness.running():
        harness.supervisor._workers._on_end = broken
        assert (await harness.run()).status is Status.COMPLETED
        assert (await harness.run()).status is Status.COMPLETED


# --- after a restart ---


async def test_restart_after_an_unstored_end(folder):
    """The volume's tags say that the job made it: the job is completed, and a guest's writes stay."""
    harness = Harness(folder)
    async with harness.running():
        job_id, gate = await held_job(harness, "converter", "flush")
        harness.store._db.execute("PRAGMA busy_timeout = 1")
        other = harness.store._lookups._idle[0]
        other.execute("PRAGMA query_only = 0")
        other.execute("BEGIN IMMEDIATE")
        gate.open()
        await unstored(harness)
        write_as_guest(harness)
    harness.converter.steps.hang_at = None
    async with harness.running():
        job = await harness.ended(job_id)
        assert (job.status, job.attempts, job.volume.name) == (Status.COMPLETED, 1, "web01")
        assert guest_data(harness) == GUEST


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING])
@pytest.mark.parametrize("removed", [False, True])
async def test_restart_skips_overtaken_jobs(folder, status, removed):
    """An older job is unfinished on disk; a newer one for its volume completed, and a guest writes to the volume."""
    harness = Harness(folder)
    async with harness.running():
        old = await harness.run()
        new = await harness.run()
        assert (old.status, new.status) == (Status.COMPLETED, Status.COMPLETED)
        if removed:
            await harness.supervisor.remove_volume("main", "web01")
        else:
            write_as_guest(harness)
    await old_store(harness, msgspec.structs.replace(old, status=status, volume=None))
    async with harness.running():
        job = await harness.ended(old.job_id)
        assert job.status is Status.FAILED
        assert job.error == f"job {new.job_id} for the volume web01 was accepted later; this one was not run again"
        assert harness.supervisor.active_count == 0
        assert harness.volume("web01") is None if removed else guest_data(harness) == GUEST


@pytest.mark.parametrize("newer", [True, False])
async def test_restart_if_store_lost_the_newer_job(folder, newer):
    """The volume's tags still say when it was made: only a later volume is protected from the older job."""
    harness = Harness(folder)
    async with harness.running():
        made = await harness.run()
        write_as_guest(harness)
    (folder / "jobs.sqlite").unlink()
    at = made.created_at + (-5 if newer else 5)
    old = msgspec.structs.replace(
        made, job_id="old", status=Status.RUNNING, created_at=at, updated_at=at, volume=None, attempts=1
    )
    await old_store(harness, old)
    async with harness.running():
        job = await harness.ended("old")
        assert job.status is (Status.FAILED if newer else Status.COMPLETED)
        assert guest_data(harness) == (GUEST if newer else IMAGE[: len(GUEST)])


async def test_restart_while_target_does_not_answer(folder):
    """The target is asked before the job runs whether it had made its volume."""
    harness = Harness(folder)
    async with harness.running():
        made = await harness.run()
        write_as_guest(harness)
    await old_store(harness, msgspec.structs.replace(made, status=Status.RUNNING, volume=None))
    find = harness.target.find
    asked = []

    async def failing_once(name):
        asked.append(name)
        if len(asked) == 1:
            raise TargetUnavailableError("the volume group is not there")
        return await find(name)

    harness.target.find = failing_once
    async with harness.running():
        job = await harness.ended(made.job_id)
        assert (job.status, job.volume.name) == (Status.COMPLETED, "web01")
        assert guest_data(harness) == GUEST
        assert len(asked) == 2
