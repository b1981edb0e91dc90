"""Jobs on disk: they are read back as stored, by page and filter, also after a restart."""

import pytest
import trio

from provisioner.contracts import GIB, Checksum, ImageUrl
from provisioner.contracts.errors import UnavailableError
from provisioner.jobs import Job, JobFilter, JobSpec, JobStore, Status, history, record
from provisioner.jobs.job import VolumeInfo


def a_job(number, **more):
    spec = JobSpec(
        image_url=ImageUrl.parse("https://x/%C3%BC.raw?signature=y"),
        volume_name=f"v{number % 3}",
        size_bytes=GIB,
        target="t",
        correlation_id=f"c{number % 2}",
    )
    fields = {
        "job_id": f"j{number}",
        "spec": spec,
        "status": Status.PENDING,
        "created_at": 1.5,
        "updated_at": float(number),
    }
    return Job(**{**fields, **more})


@pytest.fixture
async def store(tmp_path):
    made = JobStore(tmp_path / "state" / "jobs.sqlite")
    await made.open()
    yield made
    await made.aclose()


async def test_stored_job_is_read_back_equal(store, tmp_path):
    """Every field, also after a restart; other users cannot read the file."""
    volume = VolumeInfo(name="v", path="/dev/v", size_bytes=2**40, target="t", provisioned_by="clone")
    job = a_job(
        1, status=Status.COMPLETED, attempts=2, request_id="r", principal="p", idempotency_key="p\nk", cache_hit=True,
        image_path="/c", error=None, volume=volume, timings={"queued": 0.5},
    )  # fmt: skip
    await store.put(job)
    assert await store.get("j1") == job
    assert await store.get("j2") is None
    again = JobStore(tmp_path / "state" / "jobs.sqlite")
    await again.open()
    assert await again.get("j1") == job
    await again.aclose()
    assert (tmp_path / "state" / "jobs.sqlite").stat().st_mode & 0o077 == 0


async def test_put_again_keeps_its_place(store):
    for number in range(3):
        await store.put(a_job(number))
    await store.put(a_job(0, status=Status.RUNNING, updated_at=99.0))
    jobs, count = await store.page(JobFilter(), 0, 10)
    assert [job.job_id for job in jobs] == ["j2", "j1", "j0"]
    assert count == 3
    assert jobs[2].status is Status.RUNNING


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ({"status": "failed"}, [8, 4, 0]),
        ({"volume_name": "v1"}, [10, 7, 4, 1]),
        ({"correlation_id": "c1", "volume_name": "v2"}, [11, 5]),
        ({"status": "failed", "volume_name": "v1", "correlation_id": "c0"}, [4]),
        ({"status": "nonsense"}, []),
        ({"volume_name": "' OR 1=1 --"}, []),
    ],
)
async def test_pages_and_filters(store, wanted, expected):
    for number in range(12):
        await store.put(a_job(number, status=Status.FAILED if number % 4 == 0 else Status.PENDING))
    ids = [f"j{number}" for number in expected]
    for offset, limit in [(0, 100), (0, 2), (1, 3), (len(ids), 5), (100, 1)]:
        jobs, count = await store.page(JobFilter(**wanted), offset, limit)
        assert [job.job_id for job in jobs] == ids[offset : offset + limit]
        assert count == len(ids)


async def test_by_key_returns_the_newest_job(store):
    await store.put(a_job(1, idempotency_key="k"))
    await store.put(a_job(2, idempotency_key="k"))
    await store.put(a_job(3, idempotency_key="other"))
    assert (await store.by_key("k")).job_id == "j2"
    assert await store.by_key("none") is None


async def test_concurrent_puts(store):
    """One connection, many tasks."""
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(store.put, a_job(number))
    assert (await store.page(JobFilter(), 0, 1))[1] == 30


async def test_put_that_is_cancelled(store):
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.put(a_job(1))
    assert await store.get("j1") is None
    assert await store.check() is None


async def test_open_if_path_is_a_directory(tmp_path):
    """The error names the path."""
    path = tmp_path / "jobs.sqlite"
    path.mkdir()
    with pytest.raises(UnavailableError, match=r"the job store .*jobs\.sqlite cannot be used"):
        await JobStore(path).open()


async def test_store_that_becomes_unusable(store):
    """UnavailableError, and the check reports it too."""
    await store.put(a_job(1))
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(UnavailableError, match="readonly"):
        await store.put(a_job(2))
    assert "readonly" in await store.check()
    store._probed = (-100, None)
    assert "readonly" in await store.check()
    store._db.execute("PRAGMA query_only = 0")
    store._probed = (-100, None)
    assert await store.check() is None


OLD_RECORD = (
    '{"job_id":"j","spec":{"image_url":"https://x/y?z","image_type":"raw","volume_name":"v","volume_size_gb":2,'
    '"target":"t","checksum":"sha256:%s","correlation_id":"c","priority":3,"allowed_sources":["s"]},"status":"pending",'
    '"created_at":1.5,"updated_at":2.0,"attempts":0,"request_id":null,"principal":null,"idempotency_key":null,'
    '"cache_hit":null,"image_path":null,"error":null,"volume":null,"timings":null}' % ("ab" * 32)
)


def test_record_keeps_its_format():
    """A record of the previous version is read, and written again byte for byte."""
    job = record.decode(OLD_RECORD.encode())
    assert job.spec == JobSpec(
        image_url=ImageUrl.parse("https://x/y?z"),
        image_format="raw",
        volume_name="v",
        size_bytes=2 * GIB,
        target="t",
        checksum=Checksum("sha256", "ab" * 32),
        correlation_id="c",
        priority=3,
        allowed_sources=("s",),
    )
    assert record.encode(job).decode() == OLD_RECORD


@pytest.mark.parametrize("body", ["{}", "[]", OLD_RECORD.replace("https://x", "no url"), OLD_RECORD.replace("ab", "x")])
def test_record_without_a_valid_spec(body):
    with pytest.raises(ValueError, match=r"."):
        record.decode(body.encode())


async def test_jobs_of_an_id_prefix(store):
    """Ids are found by their beginning, in an index."""
    ids = ["f47ac10b-58cc", "f47ac10b-59cc", "f47ac10f-ffff"]
    for number, job_id in enumerate(ids):
        await store.put(a_job(number, job_id=job_id))
    for prefix, expected in {
        "f47ac10b": ids[1::-1], "f47ac10b-58": ids[:1], "f47ac10": ids[::-1], "f47ac10b-58cc-0": [],
    }.items():  # fmt: skip
        jobs, count = await store.page(JobFilter(id_prefix=prefix), 0, 10)
        assert ([job.job_id for job in jobs], count) == (expected, len(expected))
    assert (await store.page(JobFilter(id_prefix="f47ac10b", volume_name="v1"), 0, 1))[1] == 1
    source, values, _ = history._matching(store._db, JobFilter(id_prefix="f47ac10b"))
    plan = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {source}", values)]
    assert plan == [b"SEARCH jobs USING COVERING INDEX jobs_id (job_id>? AND job_id<?)"]
