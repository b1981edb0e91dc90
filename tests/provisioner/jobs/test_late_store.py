"""A store that answers late or never: a refused job must not exist, an accepted one must not be lost."""

import sqlite3
from contextlib import closing

import msgspec
import pytest
import trio
import trio.testing

from provisioner.contracts.errors import UnavailableError
from provisioner.jobs import JobFilter, JobStore, Status
from provisioner.jobs import store as store_module
from tests.cancellation.harness import SPEC, Harness
from tests.provisioner.jobs.frozen import FrozenConnection
from tests.provisioner.jobs.test_store import a_job


@pytest.fixture
async def path(tmp_path):
    return tmp_path / "jobs.sqlite"


@pytest.fixture
async def store(path):
    made = JobStore(path)
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
def short(monkeypatch):
    """Shorten the store's deadlines."""
    monkeypatch.setattr(store_module, "TIMEOUT", 0.05)


async def writer_idle(store):
    """Wait until the writer's thread is idle."""
    async with store._writing:
        pass


def ids_on_disk(path):
    with closing(sqlite3.connect(path)) as db, db:
        return [job_id for (job_id,) in db.execute("SELECT job_id FROM jobs ORDER BY seq")]


@pytest.mark.parametrize("at", ["BEGIN", "INSERT", "COMMIT"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_add_that_expires_is_withdrawn(store, path, short, at, after):
    """Wherever the thread hangs, the job is not on disk after the disk answers again."""
    frozen = FrozenConnection(store)
    frozen.freeze(at, after=after)
    with pytest.raises(UnavailableError, match=r"could not store the job within 0\.05 s"):
        await store.add(a_job(1))
    store_module.TIMEOUT = 10.0
    frozen.thaw()
    await writer_idle(store)
    assert ids_on_disk(path) == []
    assert store._withdrawn == set()
    await store.add(a_job(2))
    assert (await store.page(JobFilter(), 0, 10))[1] == 1


async def test_add_that_expires_in_the_queue(store, path, short):
    """The writer is busy for longer than the deadline: the second job is refused, the first one is stored."""
    frozen = FrozenConnection(store)
    frozen.freeze()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.put, a_job(1))
        await trio.to_thread.run_sync(frozen.reached.wait)
        with pytest.raises(UnavailableError):
            await store.add(a_job(2))
        frozen.thaw()
    assert ids_on_disk(path) == ["j1"]


async def test_failed_add_leaves_nothing_in_the_log(store, path):
    """The next change deletes what a failed commit may have written."""
    await store.put(a_job(1))
    store._withdrawn.add("j1")
    assert await store.get("j1") is None
    assert (await store.page(JobFilter(), 0, 10))[0] == []
    await store.put(a_job(2))
    assert ids_on_disk(path) == ["j2"]


async def test_key_of_a_withdrawn_job(store, short):
    """A withdrawn job is briefly on disk, but a request with its key must not get it."""
    frozen = FrozenConnection(store)
    frozen.freeze("COMMIT", after=True)
    with pytest.raises(UnavailableError):
        await store.add(a_job(1, idempotency_key="k"))
    assert await store.get("j1") is None  # readers see the row already
    found = []
    async with trio.open_nursery() as nursery:

        async def ask():
            found.append(await store.by_key("k"))

        store_module.TIMEOUT = 20.0
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        frozen.thaw()
    assert found == [None]


async def test_reads_do_not_wait_for_writes(store):
    await store.put(a_job(1))
    frozen = FrozenConnection(store)
    frozen.freeze()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.put, a_job(2))
        await trio.to_thread.run_sync(frozen.reached.wait)
        assert (await store.get("j1")).job_id == "j1"
        assert (await store.page(JobFilter(), 0, 10))[1] == 1
        frozen.thaw()


async def test_writes_do_not_wait_for_reads(store, monkeypatch):
    """Slow lists delay neither changes nor look-ups, and the number that may wait is limited."""
    release = trio.Event()
    hanging = []

    def slowly(db, *_):
        hanging.append(db)
        trio.from_thread.run(release.wait)
        return store_module.history.Rows([], []), 0

    monkeypatch.setattr(store_module.history, "page", slowly)
    async with trio.open_nursery() as nursery:
        for _ in range(2 + 64):
            nursery.start_soon(store.page, JobFilter(), 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        await store.add(a_job(1))
        assert (await store.get("j1")).job_id == "j1"
        with pytest.raises(UnavailableError, match="too many queries"):
            await store.page(JobFilter(), 0, 10)
        release.set()
    assert len(hanging) == 66


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_store_whose_files_are_deleted(store, path, suffix, replaced):
    """A change to a deleted file fails, and readiness says so."""
    victim = path.with_name(path.name + suffix)
    victim.unlink()
    if replaced:
        victim.write_bytes(b"")
    with pytest.raises(UnavailableError, match="was removed or replaced while the service runs"):
        await store.add(a_job(1))
    assert "removed or replaced" in await store.check()


async def test_write_while_another_process_has_lock(store, path, monkeypatch):
    """The wait for the lock is bounded, nothing is left behind, and lists work meanwhile."""
    store._db.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        await store.add(a_job(1))
    assert (await store.page(JobFilter(), 0, 10)) == ([], 0)
    assert "locked" in await store.check()
    other.execute("ROLLBACK")
    other.close()
    await store.add(a_job(2))
    assert ids_on_disk(path) == ["j2"]


async def test_repeated_checks_write_once(store):
    """Readiness checks, which need no credential, do not delay submits."""
    verdicts, statements = [], []
    store._db.set_trace_callback(statements.append)

    async def ask():
        verdicts.append(await store.check())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert verdicts == [None] * 20
    assert statements.count("COMMIT") == 1


# --- through the supervisor ---


async def test_submit_that_expires_runs_nothing(folder, short):
    """503, and no job now or after a restart; the name is free, and the same key makes a job later."""
    harness = Harness(folder)
    async with harness.running():
        frozen = FrozenConnection(harness.store)
        frozen.freeze(after=True)
        with pytest.raises(UnavailableError):
            await harness.submit()
        assert harness.supervisor.active_count == 0
        frozen.thaw()
        await writer_idle(harness.store)
        store_module.TIMEOUT = 10.0
        assert await harness.store.unfinished() == []
        assert (await harness.ended(await harness.submit(key="k"))).status is Status.COMPLETED
    async with harness.running():
        assert harness.supervisor.active_count == 0
        assert (await harness.store.page(JobFilter(), 0, 10))[1] == 1


async def test_submit_stored_at_the_deadline(folder, short, monkeypatch):
    """The commit succeeds as the deadline passes: the job is stored, accepted and run."""
    harness = Harness(folder)
    async with harness.running():
        decide = store_module._Offer.decide
        landed = []

        def late(offer, *, stored):
            if not stored:  # the deadline passes just after the thread has stored it
                landed.append(decide(offer, stored=True))
            return decide(offer, stored=stored)

        frozen = FrozenConnection(harness.store)
        frozen.freeze(after=True)
        monkeypatch.setattr(store_module._Offer, "decide", late)
        job_id = await harness.submit()
        monkeypatch.undo()
        frozen.thaw()
        assert landed == [True]
        assert (await harness.ended(job_id)).status is Status.COMPLETED


async def test_submit_by_a_client_that_hangs_up(folder):
    """The job is accepted anyway: stored and queued."""
    harness = Harness(folder)
    harness.source.steps.hang_at = "stat"
    async with harness.running():
        frozen = FrozenConnection(harness.store)
        frozen.freeze()
        with trio.CancelScope() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(harness.submit)
                await trio.to_thread.run_sync(frozen.reached.wait)
                client.cancel()
                frozen.thaw()
        (job,) = await harness.store.unfinished()
        assert harness.supervisor.active_ids == {job.job_id}


async def test_limits_count_jobs_being_stored(folder):
    """Submits that wait for the store already hold their volume's name and a place in the queue."""
    harness = Harness(folder)
    harness.jobs = msgspec.structs.replace(harness.jobs, max_queued=1)
    async with harness.running():
        frozen = FrozenConnection(harness.store)
        frozen.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.submit)
            await trio.to_thread.run_sync(frozen.reached.wait)
            with pytest.raises(Exception, match="for the volume web01 is still pending"):
                await harness.submit()
            with pytest.raises(Exception, match="for the volume web01 is still pending"):
                await harness.supervisor.remove_volume("main", "web01")
            with pytest.raises(Exception, match="1 jobs are waiting"):
                await harness.submit(msgspec.structs.replace(SPEC, volume_name="web02"))
            frozen.thaw()
