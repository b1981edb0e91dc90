"""Health and readiness, by the API contract."""

from __future__ import annotations

import pytest
import trio

from provisioner.config import ServerSettings
from provisioner.contracts.errors import TargetUnavailableError, UnavailableError
from tests.provisioner.api.conftest import job, running
from tests.provisioner.api.document import held, refused


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez"])
async def test_health(idle, path):
    body = await held(await idle.call("GET", path, role=None), "Health")
    assert body.keys() == {"status", "timestamp", "version", "uptime"}
    for number, status in enumerate(["healthy", "healthy", "degraded"]):
        await idle.submit(job(f"v{number}"))
        assert (await held(await idle.call("GET", path, role=None), "Health"))["status"] == status


async def test_health_warns_and_keeps_its_status(service):
    service.services.warnings = lambda: ["the server's certificate ends on 2024-01-20, in 5 days"]
    body = await held(await service.call("GET", "/health", role=None), "Health")
    assert (body["status"], body["warnings"]) == ("healthy", ["the server's certificate ends on 2024-01-20, in 5 days"])
    service.services.warnings = list
    assert "warnings" not in await held(await service.call("GET", "/health", role=None), "Health")


async def test_too_many_failures(service):
    for _ in range(20):
        await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": "wrong"})
    response = await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": "wrong"})
    await refused(response, 429, "too many requests", "failed authentications")
    assert 1 <= int(response.headers["Retry-After"]) <= 60


async def test_health_with_a_number_of_ones_own(tmp_path):
    async with running(tmp_path, work=False, server=ServerSettings(degraded_above=0)) as service:
        await service.submit()
        assert (await held(await service.call("GET", "/health", role=None), "Health"))["status"] == "degraded"


async def test_ready(service):
    assert await held(await service.call("GET", "/readyz", role=None), "Ready") == {"status": "ready"}


async def test_not_ready_says_why(service):
    service.target.steps.fail_at["capacity"] = TargetUnavailableError("volume group vg0 is not there")
    body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert body["reasons"] == ["target 'fake': volume group vg0 is not there"]
    assert (await service.call("GET", "/metrics", role=None)).status_code == 200


async def test_a_target_that_breaks_is_a_reason_and_no_fault_of_the_service(service):
    service.target.steps.fail_at["capacity"] = RuntimeError("a bug of a back end")
    await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert (await service.call("GET", "/metrics", role=None)).status_code == 200


async def test_not_ready_while_an_end_is_not_stored(service, monkeypatch):
    """Nothing unstored looks done: the job is shown as active, its cancel is refused, and readiness says why."""
    store = service.services.store
    put = store.put

    async def full(job):
        if not job.status.ended:
            return await put(job)
        raise UnavailableError("the job store cannot be used: database or disk is full")

    monkeypatch.setattr(store, "put", full)
    monkeypatch.setattr("provisioner.jobs.slots._STORE_TIMEOUT", 0.01)
    job_id = (await (await service.submit()).get_json())["job_id"]
    while service.services.supervisor.unstored() is None:
        await trio.lowlevel.checkpoint()
    body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert body["reasons"] == [
        f"the end of job {job_id} could not be stored yet: the job store cannot be used: database or disk is full"
    ]
    assert (await (await service.call("GET", f"/api/v1/jobs/{job_id}")).get_json())["status"] == "running"
    response = await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    await refused(response, 503, "service unavailable", "the job has stopped, but the end of job")
    monkeypatch.setattr(store, "put", put)
    assert (await service.ended(job_id))["status"] == "completed"
    assert await held(await service.call("GET", "/readyz", role=None), "Ready") == {"status": "ready"}
