"""Tests of what a job remembers of its request, and of the request id in the log."""

from __future__ import annotations

import msgspec
import pytest
import structlog
import trio

from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.testing import FakeImage
from provisioner.download import fetch, retries
from provisioner.jobs import record
from tests.provisioner.api.conftest import DIGEST, IMAGE, SUMS, URL, job, running
from tests.provisioner.api.document import held

FULL = {"target": "fake", "checksum": DIGEST.upper(), "priority": 7}


async def shown(service, job_id, role="admin"):
    return await held(await service.call("GET", f"/api/v1/jobs/{job_id}", role=role), "Job")


async def accepted(service, body, **more):
    return (await held(await service.submit(body, **more), "JobAccepted", 202))["job_id"]


async def test_job_remembers_request(idle):
    body = await shown(idle, await accepted(idle, job(**FULL, correlation_id="c")))
    assert body["request"] == job(**FULL)
    assert (body["attempts"], body["submitted_by"]) == (0, "token:admin")
    assert "waiting_for" not in body


async def test_request_without_optional_fields(idle):
    body = await shown(idle, await accepted(idle, {**job(), "image_type": None}))
    assert body["request"] == {**job(), "image_type": "qcow2", "priority": 0}


async def test_fetch_remembers_request(service):
    answer = await service.call("POST", "/api/v1/cache/fetch", json={"image_url": URL, "image_type": "raw"})
    body = await service.ended((await answer.get_json())["job_id"])
    assert body["request"] == {"image_url": URL, "image_type": "raw"}
    assert body["attempts"] == 1


async def test_request_url_without_query_for_others(service):
    url = f"{URL}?signature=secret"
    service.source.images |= {url: FakeImage(IMAGE), f"{URL}.sha256?signature=secret": FakeImage(SUMS)}
    job_id = await accepted(service, job(image_url=url, checksum=DIGEST), role="operator")
    assert (await shown(service, job_id, "operator"))["request"]["image_url"] == url
    for role in ("viewer", "admin"):
        body = await shown(service, job_id, role)
        assert body["request"]["image_url"] == body["image_url"] == URL


async def test_request_of_job_stored_before(idle):
    store = idle.services.store
    stored = await store.get(await accepted(idle, job(**FULL)))
    old = msgspec.json.decode(record.encode(stored))
    del old["request"]
    idle.services.supervisor._workers.active.clear()
    await store.put(record.decode(msgspec.json.encode(old)))
    assert (await shown(idle, stored.job_id))["request"] == job(**{**FULL, "checksum": f"sha256:{DIGEST}"})


@pytest.mark.parametrize("step", ["stat", "byte"])
async def test_waiting_for_last_temporary_error(folder, monkeypatch, step):
    """A source that is asked again is named while the job waits for it, without the query of a url."""
    async with running(folder, download_attempts=3) as service:
        pause, go_on = trio.Event(), trio.Event()

        async def sleep(_seconds):
            pause.set()
            await go_on.wait()

        for module in (fetch, retries):
            monkeypatch.setattr(module, "trio", _Trio(sleep))
        service.source.at_byte = len(IMAGE) // 2
        error = RemoteUnavailableError("https://images.example/x?signature=secret did not answer")
        service.source.steps.fail_at[step] = error
        job_id = await accepted(service, job())
        await pause.wait()
        body = await shown(service, job_id)
        assert body["waiting_for"] == "https://images.example/x did not answer"
        del service.source.steps.fail_at[step]
        go_on.set()
        body = await service.ended(job_id)
        assert body["status"] == "completed"
        assert "waiting_for" not in body


class _Trio:
    """Trio with another sleep."""

    def __init__(self, sleep):
        self.sleep = sleep

    def __getattr__(self, name):
        return getattr(trio, name)


@pytest.fixture
def lines():
    """The log lines with their context, as they are written."""
    before, lines = structlog.get_config(), structlog.testing.LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, lines], cache_logger_on_first_use=False)
    yield lines.entries
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize(
    ("headers", "wanted"), [({}, "deploy-1"), ({"X-Request-ID": "req-1"}, "req-1")], ids=["correlation", "header"]
)
async def test_one_request_id_in_every_line(service, lines, headers, wanted):
    """From the first line of the request to the last of its job."""
    answer = await service.submit(job(correlation_id="deploy-1"), headers=headers)
    await service.ended((await answer.get_json())["job_id"])
    assert [line["event"] for line in lines] == ["job accepted", "job started", "job ended"]
    assert {line["request_id"] for line in lines} == {answer.headers["X-Request-ID"]} == {wanted}


async def test_one_request_id_when_submit_fails(service, lines, monkeypatch):
    monkeypatch.setattr(service.services.supervisor, "submit", None)
    answer = await service.submit(job(correlation_id="deploy-1"))
    assert (answer.status_code, len(lines)) == (500, 1)
    assert lines[0]["request_id"] == answer.headers["X-Request-ID"] == "deploy-1"
