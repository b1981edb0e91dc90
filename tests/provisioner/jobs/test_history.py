"""The history: filters and counts compared with a plain list, unreadable rows, and pruning."""

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.contracts import Duration
from provisioner.jobs import JobFilter, JobStore, Status, history, record
from provisioner.jobs import supervisor as supervisor_module
from provisioner.jobs.service_clock import ServiceClock
from tests.cancellation.harness import SPEC, Harness
from tests.provisioner.jobs.test_store import a_job

DAY = 86400.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.sqlite"


@pytest.fixture
async def store(path):
    made = JobStore(path)
    await made.open()
    yield made
    await made.aclose()


# --- filters and counts ---

NAMES = st.sampled_from(["a", "b", None])
CHANGES = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(list(Status)), NAMES, NAMES, st.integers(0, 9)), max_size=40
)


@settings(max_examples=40)
@given(CHANGES, st.data())
def test_pages_match_a_list(changes, data):
    """While jobs are added, changed and pruned, every filter agrees with a plain list in content, count and order."""

    async def main(folder):
        store = JobStore(Path(folder) / "jobs.sqlite")
        await store.open()
        try:
            expected = {}
            for number, status, volume, correlation, gone in changes:
                job = a_job(number)
                spec = msgspec.structs.replace(job.spec, volume_name=volume, correlation_id=correlation)
                if number in expected:  # the spec never changes
                    spec = expected[number].spec
                expected[number] = msgspec.structs.replace(job, spec=spec, status=status)
                await store.put(expected[number])
                if gone in expected and gone != number:
                    await store._write(
                        lambda db, gone=gone: db.execute("DELETE FROM jobs WHERE job_id = ?", (f"j{gone}",))
                    )
                    del expected[gone]
            newest_first = list(expected.values())[::-1]
            for status in (None, "failed", "pending", "nonsense"):
                for volume in (None, "a", "b"):
                    for correlation in (None, "a", "b"):
                        matching = [
                            job
                            for job in newest_first
                            if status in {None, job.status.value}
                            and volume in {None, job.spec.volume_name}
                            and correlation in {None, job.spec.correlation_id}
                        ]
                        wanted = JobFilter(status=status, volume_name=volume, correlation_id=correlation)
                        offset, limit = data.draw(st.integers(0, 11)), data.draw(st.integers(1, 11))
                        jobs, count = await store.page(wanted, offset, limit)
                        assert (jobs, count) == (matching[offset : offset + limit], len(matching))
        finally:  # Hypothesis ends some examples early
            await store.aclose()

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        trio.run(main, folder)


@pytest.mark.parametrize(
    "wanted",
    [
        {}, {"status": "completed"}, {"volume_name": "v1"}, {"correlation_id": "c1"},
        {"volume_name": "v1", "status": "completed"}, {"correlation_id": "c1", "status": "completed"},
        {"volume_name": "v1", "correlation_id": "c1"},
        {"volume_name": "v1", "correlation_id": "c1", "status": "completed"},
    ],
)  # fmt: skip
async def test_every_filter_has_an_index(store, wanted):
    """No list or count scans the table or sorts."""
    for number in range(6):
        await store.put(a_job(number, status=Status.COMPLETED))
    source, values, _ = history._matching(store._db, JobFilter(**wanted))
    plan = store._db.execute(f"EXPLAIN QUERY PLAN {source} ORDER BY seq DESC LIMIT 9", values).fetchall()
    steps = [detail.decode() for *_, detail in plan]
    assert any("USING COVERING INDEX" in step for step in steps)
    assert not [step for step in steps if "TEMP B-TREE" in step or ("jobs" in step and "COVERING" not in step)]


# --- unreadable rows ---

UNREADABLE = {
    "no JSON": "{",
    "no job": '{"job_id": "j1"}',
    "another job's": None,
    "no UTF-8": b"\xff\xfe",
    "no text": 7,
    "a time that no calendar has": "time",
}


def spoil(path, what):
    job = record.encode(a_job(2)).decode()
    body = {"another job's": job, "a time that no calendar has": None}.get(what, UNREADABLE[what])
    if what == "a time that no calendar has":
        body = record.encode(a_job(1, status=Status.FAILED, updated_at=1e300)).decode()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE jobs SET body = ? WHERE job_id = 'j1'", (body,))


@pytest.mark.parametrize("what", UNREADABLE)
async def test_unreadable_row_in_a_list(store, path, what):
    """It is set aside and logged; list and count are right without it."""
    for number in range(3):
        await store.put(a_job(number, status=Status.FAILED))
    spoil(path, what)
    with structlog.testing.capture_logs() as logs:
        jobs, count = await store.page(JobFilter(status="failed"), 0, 10)
    assert ([job.job_id for job in jobs], count) == (["j2", "j0"], 2)
    assert [line["job_ids"] for line in logs if line["log_level"] == "error"] == [["j1"]]
    assert await store.get("j1") is None
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute("SELECT count(*) FROM unreadable_jobs").fetchone() == (1,)


async def test_unreadable_row_in_a_full_store(store, path):
    """It cannot be set aside now; the other jobs are listed anyway."""
    for number in range(3):
        await store.put(a_job(number))
    spoil(path, "no JSON")
    store._db.execute("PRAGMA query_only = 1")
    jobs, _ = await store.page(JobFilter(), 0, 10)
    assert [job.job_id for job in jobs] == ["j2", "j0"]
    assert [job.job_id for job in await store.unfinished()] == ["j0", "j2"]
    assert await store.get("j1") is None


async def test_unreadable_row_by_id(store, path):
    await store.put(a_job(1, idempotency_key="k"))
    spoil(path, "no JSON")
    assert await store.get("j1") is None
    assert await store.by_key("k") is None


async def test_unreadable_row_at_the_start(folder):
    """The start succeeds, and the other jobs run."""
    harness = Harness(folder)
    harness.source.steps.hang_at = "stat"
    async with harness.running():
        bad = await harness.submit()
        good = await harness.submit(msgspec.structs.replace(SPEC, volume_name="web02"))
    with closing(sqlite3.connect(folder / "jobs.sqlite")) as db, db:
        db.execute("UPDATE jobs SET body = 'x' WHERE job_id = ?", (bad,))
    harness.source.steps.hang_at = None
    async with harness.running():
        assert (await harness.ended(good)).status is Status.COMPLETED
        assert await harness.store.get(bad) is None


# --- pruning ---


class Clocks:
    """The two clocks of a host, moved by hand."""

    def __init__(self):
        self.wall = self.steady = 1_700_000_000.0

    def run(self, seconds):
        self.wall += seconds
        self.steady += seconds

    def service_clock(self):
        return ServiceClock(lambda: self.wall, lambda: self.steady)


async def life(path, clocks, *jobs):
    """Run the store once, add ``jobs``, and prune those of 90 days and older."""
    store = JobStore(path, clocks.service_clock())
    await store.open()
    for job in jobs:
        await store.put(job)
    await store.prune(90 * DAY, 1000)
    left = (await store.page(JobFilter(), 0, 100))[1]
    await store.aclose()
    return left


async def test_wall_clock_a_year_ahead(path):
    """One start with it prunes nothing, even if jobs end meanwhile; nor does the clock's correction."""
    clocks = Clocks()
    ended = [a_job(number, status=Status.FAILED) for number in range(5)]
    assert await life(path, clocks, *ended) == 5
    clocks.wall += 365 * DAY
    assert await life(path, clocks, a_job(9, status=Status.COMPLETED, updated_at=clocks.wall)) == 6
    clocks.wall -= 365 * DAY
    assert await life(path, clocks) == 6
    clocks.wall = 0.0
    assert await life(path, clocks) == 6


async def trusted(path, clocks, seconds=0.0):
    """Run the store for so long; return whether it then trusts the wall clock."""
    store = JobStore(path, clocks.service_clock())
    await store.open()
    clocks.run(seconds)
    found = store.trusted_wall()
    await store.prune(90 * DAY, 1000)  # writes the clocks
    await store.aclose()
    assert found in {None, clocks.wall}
    return found is not None


async def test_new_store_trusts_the_wall_clock_after_a_day(path):
    clocks = Clocks()
    assert not await trusted(path, clocks, 0.9 * DAY)
    assert await trusted(path, clocks, 0.2 * DAY)


async def test_wall_clock_ahead_is_trusted_after_a_day(path):
    """Restarts with the wrong clock do not help it; neither does its correction."""
    clocks = Clocks()
    assert await trusted(path, clocks, 2 * DAY)
    clocks.run(0.9 * DAY)
    assert await trusted(path, clocks)
    clocks.wall += 365 * DAY
    assert not await trusted(path, clocks)
    assert not await trusted(path, clocks, 0.9 * DAY)
    assert await trusted(path, clocks, 0.2 * DAY)
    clocks.wall -= 365 * DAY
    assert await trusted(path, clocks)


async def test_wall_clock_that_jumps_while_the_service_runs(path):
    clocks = Clocks()
    await trusted(path, clocks, 2 * DAY)
    store = JobStore(path, clocks.service_clock())
    await store.open()
    assert store.trusted_wall() == clocks.wall
    clocks.run(3 * DAY)
    assert store.trusted_wall() == clocks.wall
    clocks.wall += 2 * DAY
    assert store.trusted_wall() is None
    clocks.run(DAY)
    assert store.trusted_wall() == clocks.wall
    await store.aclose()


async def test_history_ages_by_uptime(path):
    """Also across restarts with short downtimes; unfinished jobs are never pruned."""
    clocks = Clocks()
    jobs = [a_job(number, status=status) for number, status in enumerate(Status)]
    store = JobStore(path, clocks.service_clock())
    await store.open()
    for job in jobs:
        await store.put(job)
    clocks.run(50 * DAY)
    await store.put(a_job(9, status=Status.FAILED))
    await store.aclose()
    clocks.run(0.9 * DAY)  # the service is down
    store = JobStore(path, clocks.service_clock())
    await store.open()
    clocks.run(39 * DAY)
    assert await store.prune(90 * DAY, 1000) == 0
    clocks.run(0.2 * DAY)
    assert await store.prune(90 * DAY, 2) == 2
    assert await store.prune(90 * DAY, 2) == 1
    found, _ = await store.page(JobFilter(), 0, 100)
    assert [job.job_id for job in found] == ["j9", "j1", "j0"]
    await store.aclose()


async def test_prune_in_small_steps_while_serving(folder, monkeypatch):
    """Several steps are due: they run one after the other, and jobs run meanwhile."""
    monkeypatch.setattr(supervisor_module, "_PRUNE_STEP", 10)
    monkeypatch.setattr(supervisor_module, "_PRUNE_PAUSE", 0.001)
    harness = Harness(folder)
    async with harness.only_store() as store:
        for number in range(35):
            await store.put(a_job(number, status=Status.FAILED))
    harness.jobs = msgspec.structs.replace(harness.jobs, keep_history=Duration(0))
    async with harness.running():
        while (await harness.store.page(JobFilter(status="failed"), 0, 1))[1]:
            await trio.lowlevel.checkpoint()
        harness.supervisor._settings = msgspec.structs.replace(harness.jobs, keep_history=Duration(DAY))
        assert (await harness.run()).status is Status.COMPLETED
