"""Ends that could not be stored: nothing of them is told, they are retried, and no restart runs what is overtaken."""

import subprocess
import sys
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
from provisioner.jobs import ends as ends_module
from provisioner.jobs import slots as slots_module
from tests.cancellation.lab import IMAGE, SPEC, Lab

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
    """Pauses and waits that a test can afford."""
    monkeypatch.setattr(ends_module, "PAUSES", (0.01,))
    monkeypatch.setattr(slots_module, "PAUSES", (0.01,))
    monkeypatch.setattr(slots_module, "_STORE_TIMEOUT", 0.05)


@contextmanager
def locked(lab):
    """Another process holds the write lock of the database."""
    lab.store._db.execute("PRAGMA busy_timeout = 1")
    command = [sys.executable, "-c", HOLDER, str(lab.folder / "jobs.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        yield


async def unstored(lab):
    """Wait until an end could not be stored."""
    while lab.supervisor.unstored() is None:
        await trio.lowlevel.checkpoint()


class Gate:
    """Holds a step of a fake until it is opened."""

    def __init__(self, steps, step):
        self.reached, self._open = trio.Event(), trio.Event()
        steps.hang_at, steps.hang = step, self._hang

    async def _hang(self):
        self.reached.set()
        await self._open.wait()

    def open(self):
        self._open.set()


async def held_job(lab, fake, step, spec=SPEC):
    """A job that waits at ``step``, and the gate it waits at."""
    gate = Gate(lab.steps(fake), step)
    job_id = await lab.submit(spec)
    await gate.reached.wait()
    return job_id, gate


async def old_store(lab, *jobs):
    """Leave a store as an earlier life might have left it."""
    async with lab.only_store() as store:
        for job in jobs:
            await store.put(job)


def write_as_guest(lab):
    with (lab.target.folder / "web01").open("r+b") as file:
        file.write(GUEST)


def guest_data(lab):
    with (lab.target.folder / "web01").open("rb") as file:
        return file.read(len(GUEST))


async def test_completed_is_told_when_it_is_stored(folder):
    """The volume stands, the store is locked: the job is shown as running, its name stays taken, readiness says why."""
    lab = Lab(folder)
    async with lab.running():
        told = []
        lab.supervisor._slots._on_end = told.append
        job_id, gate = await held_job(lab, "converter", "flush")
        with locked(lab):
            gate.open()
            await unstored(lab)
            assert lab.volume() == IMAGE
            assert (await lab.supervisor.find(job_id))[0].status is Status.RUNNING
            assert (await lab.store.page(JobFilter(status="completed"), 0, 9))[1] == 0
            assert f"the end of job {job_id} could not be stored yet" in lab.supervisor.unstored()
            assert "locked" in lab.supervisor.unstored()
            assert lab.metrics.jobs.labels("completed")._value.get() == 0
            assert told == []
            for ask in (lab.submit(), lab.supervisor.remove_volume("main", "web01")):
                with pytest.raises(ConflictError, match=job_id):
                    await ask
            with pytest.raises(UnavailableError, match="the job has stopped, but"):
                await lab.supervisor.cancel(job_id)
        assert (await lab.ended(job_id)).status is Status.COMPLETED
        assert lab.supervisor.unstored() is None
        assert lab.metrics.jobs.labels("completed")._value.get() == 1
        assert [job.job_id for job in told] == [job_id]
        await lab.supervisor.remove_volume("main", "web01")


async def test_failed_on_a_full_disk(folder):
    """The database may not grow: a real "database or disk is full", and the end once there is room."""
    lab = Lab(folder)
    lab.converter.steps.fail_at = {"flush": ConvertError("x" * 100_000)}
    async with lab.running():
        job_id, gate = await held_job(lab, "source", "stat")
        (pages,) = lab.store._db.execute("PRAGMA page_count").fetchone()
        lab.store._db.execute(f"PRAGMA max_page_count = {pages}")
        gate.open()
        await unstored(lab)
        assert "full" in lab.supervisor.unstored()
        assert (await lab.supervisor.find(job_id))[0].status is Status.RUNNING
        lab.store._db.execute("PRAGMA max_page_count = 100000")
        assert (await lab.ended(job_id)).status is Status.FAILED
        lab.assert_nothing_left()


async def test_cancel_is_told_when_it_is_stored(folder):
    """A 503 while the store is locked, for running and waiting jobs; the end follows by itself."""
    lab = Lab(folder)
    lab.jobs = msgspec.structs.replace(lab.jobs, max_concurrent=1)
    async with lab.running():
        running, _ = await held_job(lab, "source", "stat")
        waiting = await lab.submit(msgspec.structs.replace(SPEC, volume_name="web02"))
        with locked(lab):
            for job_id, status in [(waiting, Status.PENDING), (running, Status.RUNNING)]:
                for _ in range(2):  # asking again is no different
                    with pytest.raises(UnavailableError, match="the job has stopped, but"):
                        await lab.supervisor.cancel(job_id)
                assert (await lab.supervisor.find(job_id))[0].status is status
            assert "2 jobs" in lab.supervisor.unstored()
            assert lab.supervisor.active_count == 2
        for job_id in (waiting, running):
            assert (await lab.ended(job_id)).status is Status.CANCELLED
            with pytest.raises(CancelError, match="'cancelled' status"):
                await lab.supervisor.cancel(job_id)
        assert lab.supervisor.active_count == 0
        assert len(lab.supervisor._reservations) == 0


async def test_cancel_by_a_client_that_hangs_up(folder):
    """The job ends although nobody waits for it, and it never runs again."""
    lab = Lab(folder)
    lab.jobs = msgspec.structs.replace(lab.jobs, max_concurrent=1)
    async with lab.running():
        await held_job(lab, "source", "stat")
        waiting = await lab.submit(msgspec.structs.replace(SPEC, volume_name="web02"))
        active = lab.supervisor._slots.active[waiting]
        with locked(lab), trio.CancelScope() as client:
            client.cancel()
            await lab.supervisor.cancel(waiting)
        assert client.cancelled_caught
        await active.ended.wait()
        assert (await lab.store.get(waiting)).status is Status.CANCELLED
    async with lab.running():
        assert waiting not in lab.supervisor.active_ids


async def test_start_waits_for_the_store(folder):
    """A store that is locked fails no job: it starts when that can be stored, and can be cancelled before."""
    lab = Lab(folder)
    lab.jobs = msgspec.structs.replace(lab.jobs, max_concurrent=1)
    async with lab.running():
        holder, gate = await held_job(lab, "source", "stat")
        ids = [await lab.submit(msgspec.structs.replace(SPEC, volume_name=f"v{n}")) for n in range(2)]
        lab.source.steps.hang_at = None
        with locked(lab):
            gate.open()
            await unstored(lab)
            while (await lab.supervisor.find(ids[0]))[0].status is not Status.RUNNING:
                await trio.lowlevel.checkpoint()
            with pytest.raises(UnavailableError):
                await lab.supervisor.cancel(ids[0])
            assert lab.volume("v0") is None
        statuses = [(await lab.ended(job_id)).status for job_id in (holder, *ids)]
        assert statuses == [Status.COMPLETED, Status.CANCELLED, Status.COMPLETED]


async def test_a_listener_that_fails_at_an_end(folder):
    """Its fault is logged; other jobs go on."""

    def broken(job):
        raise RuntimeError("no disk for the audit log")

    lab = Lab(folder)
    async with lab.running():
        lab.supervisor._slots._on_end = broken
        assert (await lab.run()).status is Status.COMPLETED
        assert (await lab.run()).status is Status.COMPLETED


# --- after a restart ---


async def test_restart_after_an_end_that_was_never_stored(folder):
    """The volume's tags say that the job had made it: it is completed, and what a guest wrote stays."""
    lab = Lab(folder)
    async with lab.running():
        job_id, gate = await held_job(lab, "converter", "flush")
        lab.store._db.execute("PRAGMA busy_timeout = 1")
        other = lab.store._lookups._idle[0]
        other.execute("PRAGMA query_only = 0")
        other.execute("BEGIN IMMEDIATE")
        gate.open()
        await unstored(lab)
        write_as_guest(lab)
    lab.converter.steps.hang_at = None
    async with lab.running():
        job = await lab.ended(job_id)
        assert (job.status, job.attempts, job.volume.name) == (Status.COMPLETED, 1, "web01")
        assert guest_data(lab) == GUEST


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING])
@pytest.mark.parametrize("removed", [False, True])
async def test_restart_runs_nothing_that_is_overtaken(folder, status, removed):
    """An older job was left unfinished on disk; a newer one for its volume completed, and a guest writes to it."""
    lab = Lab(folder)
    async with lab.running():
        old = await lab.run()
        new = await lab.run()
        assert (old.status, new.status) == (Status.COMPLETED, Status.COMPLETED)
        if removed:
            await lab.supervisor.remove_volume("main", "web01")
        else:
            write_as_guest(lab)
    await old_store(lab, msgspec.structs.replace(old, status=status, volume=None))
    async with lab.running():
        job = await lab.ended(old.job_id)
        assert job.status is Status.FAILED
        assert job.error == f"job {new.job_id} for the volume web01 was accepted later; this one was not run again"
        assert lab.supervisor.active_count == 0
        assert lab.volume("web01") is None if removed else guest_data(lab) == GUEST


@pytest.mark.parametrize("newer", [True, False])
async def test_restart_where_the_store_lost_the_newer_job(folder, newer):
    """The volume's own tags still say when it was made: only what was made later is kept from being replaced."""
    lab = Lab(folder)
    async with lab.running():
        made = await lab.run()
        write_as_guest(lab)
    (folder / "jobs.sqlite").unlink()
    at = made.created_at + (-5 if newer else 5)
    old = msgspec.structs.replace(
        made, job_id="old", status=Status.RUNNING, created_at=at, updated_at=at, volume=None, attempts=1
    )
    await old_store(lab, old)
    async with lab.running():
        job = await lab.ended("old")
        assert job.status is (Status.FAILED if newer else Status.COMPLETED)
        assert guest_data(lab) == (GUEST if newer else IMAGE[: len(GUEST)])


async def test_restart_while_the_target_cannot_be_asked(folder):
    """Whether the job had made its volume is found out before it runs, and not guessed."""
    lab = Lab(folder)
    async with lab.running():
        made = await lab.run()
        write_as_guest(lab)
    await old_store(lab, msgspec.structs.replace(made, status=Status.RUNNING, volume=None))
    find = lab.target.find
    asked = []

    async def failing_once(name):
        asked.append(name)
        if len(asked) == 1:
            raise TargetUnavailableError("the volume group is not there")
        return await find(name)

    lab.target.find = failing_once
    async with lab.running():
        job = await lab.ended(made.job_id)
        assert (job.status, job.volume.name) == (Status.COMPLETED, "web01")
        assert guest_data(lab) == GUEST
        assert len(asked) == 2
