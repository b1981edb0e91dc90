"""The database file: migrations from the first schema on, damage, and databases of other versions."""

import sqlite3
from contextlib import closing

import pytest
import structlog

from provisioner.contracts.errors import UnavailableError
from provisioner.jobs import JobFilter, JobStore, Status, database, record
from tests.cancellation.harness import Harness
from tests.provisioner.jobs.test_store import a_job

# The schema of version 0. Do not change it.
VERSION_0 = """
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY,
    seq INTEGER,
    status TEXT NOT NULL,
    volume_name TEXT,
    correlation_id TEXT,
    idempotency_key TEXT,
    updated_at REAL NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_status ON jobs (status);
CREATE INDEX IF NOT EXISTS jobs_key ON jobs (idempotency_key);
CREATE INDEX IF NOT EXISTS jobs_seq ON jobs (seq);
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jobs.sqlite"


def version_0(path, jobs=()):
    """Create a database of version 0 with ``jobs``, accepted in the order of the list."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(VERSION_0)
    rows = [
        (
            job.job_id, seq, job.status.value, job.spec.volume_name, job.spec.correlation_id, job.idempotency_key,
            job.updated_at, record.encode(job).decode(),
        )
        for seq, job in enumerate(jobs, 1)
    ]  # fmt: skip
    rows = rows[1::2] + rows[::2]  # the table's order differs from that of acceptance
    db.executemany("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    db.commit()
    return db


def watched_connections(monkeypatch):
    """The connections that are opened from now on, each with ``closed``."""
    made, connect = [], sqlite3.connect

    class Watched(sqlite3.Connection):
        closed = False

        def close(self):
            self.closed = True
            super().close()

    def watched(*arguments, **options):
        made.append(connect(*arguments, **options, factory=Watched))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", watched)
    return made


async def opened(path):
    store = JobStore(path)
    await store.open()
    return store


def kept(path):
    """Return the databases that were set aside."""
    return [one for one in path.parent.iterdir() if ".damaged-" in one.name and one.name[-4:] not in {"-wal", "-shm"}]


async def test_migration_from_version_0(path):
    """All jobs keep order, counts, keys and targets; the schema equals that of a new database."""
    statuses = [Status.COMPLETED, Status.FAILED, Status.COMPLETED, Status.RUNNING, Status.PENDING]
    jobs = [
        a_job(number, status=status, idempotency_key=f"k{number}" if number == 1 else None)
        for number, status in enumerate(statuses)
    ]
    version_0(path, jobs).close()
    store = await opened(path)
    found, count = await store.page(JobFilter(), 0, 10)
    assert (found, count) == (jobs[::-1], 5)
    assert (await store.page(JobFilter(status="completed"), 0, 10)) == ([jobs[2], jobs[0]], 2)
    assert (await store.page(JobFilter(volume_name="v0"), 0, 10)) == ([jobs[3], jobs[0]], 2)
    assert (await store.page(JobFilter(correlation_id="c1", status="failed"), 0, 10)) == ([jobs[1]], 1)
    assert [job.job_id for job in await store.unfinished()] == ["j3", "j4"]
    assert (await store.by_key("k1")) == jobs[1]
    assert await store.newer(jobs[0]) == "j3"
    await store.put(a_job(9))
    assert (await store.page(JobFilter(), 0, 1))[0][0].job_id == "j9"
    await store.aclose()
    fresh = await opened(path.with_name("fresh.sqlite"))
    await fresh.aclose()
    schemas = []
    for one in (path, path.with_name("fresh.sqlite")):
        with closing(sqlite3.connect(one)) as db, db:
            schemas.append(set(db.execute("SELECT type, name, sql FROM sqlite_master")))
            assert db.execute("PRAGMA user_version").fetchone() == (database.VERSION,)
    assert schemas[0] == schemas[1]


async def test_migration_interrupted(path, monkeypatch):
    """A migration is atomic: the next start finds the old database unchanged."""
    version_0(path, [a_job(1)]).close()
    monkeypatch.setattr(database, "_TRIGGERS", "CREATE NONSENSE;")
    with pytest.raises(UnavailableError):
        await JobStore(path).open()
    monkeypatch.undo()
    store = await opened(path)
    assert (await store.get("j1")).job_id == "j1"
    await store.aclose()


async def test_migration_sets_unreadable_rows_aside(path):
    db = version_0(path, [a_job(1), a_job(2)])
    db.execute("UPDATE jobs SET body = '{' WHERE job_id = 'j1'")
    db.commit()
    db.close()
    store = await opened(path)
    jobs, count = await store.page(JobFilter(), 0, 10)
    assert ([job.job_id for job in jobs], count) == (["j2"], 1)
    await store.aclose()


@pytest.mark.parametrize("version", [0, 1])
async def test_database_with_an_extra_column(path, version):
    """An unknown column does no harm."""
    if version == 0:
        db = version_0(path)
    else:
        await (await opened(path)).aclose()
        db = sqlite3.connect(path)
    db.execute("ALTER TABLE jobs ADD COLUMN note TEXT")
    db.commit()
    db.close()
    store = await opened(path)
    await store.add(a_job(1))
    assert await store.check() is None
    assert (await store.page(JobFilter(), 0, 1))[1] == 1
    await store.aclose()
    assert kept(path) == []


async def test_database_of_a_newer_version(path):
    """It is refused in one sentence and stays unchanged."""
    await (await opened(path)).aclose()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(
        UnavailableError, match=r"written by a newer version of the service \(schema 7, this one knows 1"
    ):
        await JobStore(path).open()
    assert kept(path) == []


def garbage(path):
    path.write_bytes(b"no database" * 1000)


def torn(path):
    """Overwrite a page in the middle, as a faulty disk might."""
    with path.open("r+b") as file:
        file.seek(4096 * 4)
        file.write(b"\xa5" * 4096 * 3)


def other_table(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE jobs (id INTEGER)")


@pytest.mark.parametrize("damage", [garbage, torn, other_table])
async def test_damaged_database_is_set_aside(path, damage):
    """It is kept under another name, one log line says so, and the store starts empty; even twice in one second."""
    for times in (1, 2):
        store = await opened(path)
        for number in range(30):
            await store.put(a_job(number))
        await store.aclose()
        damage(path)
        bytes_before = path.read_bytes()
        with structlog.testing.capture_logs() as logs:
            store = await opened(path)
        errors = [line for line in logs if line["log_level"] == "error"]
        assert len(errors) == 1
        assert errors[0]["event"].startswith("the job store was damaged and has been set aside")
        assert len(kept(path)) == times
        if damage is not other_table:  # there the file contains the journal mode
            assert bytes_before in [one.read_bytes() for one in kept(path)]
        assert await store.page(JobFilter(), 0, 1) == ([], 0)
        await store.add(a_job(1))
        await store.aclose()


async def test_damage_found_while_serving(path, monkeypatch):
    """After damage beyond the quick check at start, the next start checks the whole database."""
    check = database._check
    monkeypatch.setattr(database, "_check", lambda db, path: None)
    store = await opened(path)
    store._transact(lambda db: [store._insert(db, a_job(number)) for number in range(3000)])
    await store.aclose()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xa5" * (size - file.tell()))
    store = await opened(path)
    with pytest.raises(UnavailableError, match="malformed"):
        await store.page(JobFilter(), 0, 1000)
    await store.aclose()
    monkeypatch.setattr(database, "_check", check)
    monkeypatch.setattr(database, "_CHECK_TIME", 0.0)
    with structlog.testing.capture_logs() as logs:
        store = await opened(path)
    assert any("set aside" in line["event"] for line in logs)
    await store.aclose()
    assert len(kept(path)) == 1
    assert not path.with_name("jobs.sqlite.suspect").exists()


async def test_damaged_store_keeps_volumes_and_cache(folder):
    """They are found by their own tags and files: the volume can be removed, the image is used again."""
    harness = Harness(folder)
    async with harness.running():
        job = await harness.run()
    garbage(folder / "jobs.sqlite")
    async with harness.running():
        assert (await harness.store.page(JobFilter(), 0, 1)) == ([], 0)
        (volume,) = await harness.target.list()
        assert (volume.name, volume.provenance.job_id) == ("web01", job.job_id)
        assert (await harness.run()).cache_hit is True
        await harness.supervisor.remove_volume("main", "web01")


async def test_locked_database_is_not_damaged(path, monkeypatch):
    """If another process locks it, the start fails with the reason, and nothing is set aside."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.01)
    await (await opened(path)).aclose()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    made = watched_connections(monkeypatch)
    with pytest.raises(UnavailableError, match="locked"):
        await JobStore(path).open()
    other.close()
    assert kept(path) == []
    assert [connection.closed for connection in made] == [True] * len(made) != []
