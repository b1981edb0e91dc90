"""Tests of reading and cancelling jobs."""

from __future__ import annotations

import re

import pytest
import trio

from tests.provisioner.api.conftest import ABSENT, IMAGE, job
from tests.provisioner.api.document import held, refused

UNKNOWN = "4f1c7e0a-93b5-4d62-8a0e-5b7d2c9e6f18"


async def test_completed_job(service):
    body = await service.done(job(correlation_id="deploy-4711"))
    await held(await service.call("GET", f"/api/v1/jobs/{body['job_id']}"), "Job")
    assert body["status"] == "completed"
    assert body["progress"]["percent"] == 100
    assert body["correlation_id"] == "deploy-4711"
    assert body["cache_hit"] is False
    assert await trio.Path(body["image_path"]).read_bytes() == IMAGE
    assert body["volume"]["name"] == "web-01"
    assert (body["volume"]["size_bytes"], body["volume"]["target"]) == (2**30, "fake")
    assert body["volume"]["provisioned_by"] == "copy"
    assert body["timings"].keys() <= {
        "queued", "checking_cache", "downloading", "verifying", "allocating", "converting", "populating", "finalizing"
    }  # fmt: skip
    again = await service.done(job("web-02"))
    assert again["cache_hit"] is True


async def test_failed_job(service):
    body = await service.done(job(image_url=ABSENT))
    await held(await service.call("GET", f"/api/v1/jobs/{body['job_id']}"), "Job")
    assert body["status"] == "failed"
    assert body["error"]
    assert "image_path" not in body
    assert "volume" not in body


async def test_pending_job(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    body = await held(await idle.call("GET", f"/api/v1/jobs/{job_id}"), "Job")
    assert body["status"] == "pending"
    assert body["progress"] == {"stage": "queued", "percent": 0}
    assert "cache_hit" not in body
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["created_at"])


@pytest.mark.parametrize("job_id", [UNKNOWN, "x", "%00", "a%2Fb", "%F0%9F%92%A9", "x" * 5000])
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("POST", "/cancel")])
async def test_unknown_job(service, job_id, method, tail):
    response = await service.call(method, f"/api/v1/jobs/{job_id}{tail}")
    if "%2F" in job_id:
        await refused(response, 404, "not found", "nothing at this path")
    else:
        assert await held(response, "ErrorResponse", 404) == {
            "error": "job not found",
            "message": "job not found",
            "code": 404,
            "reason": "job-not-found",
        }


async def test_list_jobs(service):
    made = [(await service.done(job(f"v{number}", correlation_id=f"c{number % 2}")))["job_id"] for number in range(4)]
    failed = (await service.done(job("v0", image_url=ABSENT)))["job_id"]

    async def listed(query=""):
        body = await held(await service.call("GET", f"/api/v1/jobs{query}"), "JobList")
        return [entry["job_id"] for entry in body["jobs"]], body["count"], body["offset"], body["limit"]

    newest_first = [failed, *reversed(made)]
    assert await listed() == (newest_first, 5, 0, 100)
    assert await listed("?offset=1&limit=2") == (newest_first[1:3], 5, 1, 2)
    assert await listed("?status=failed") == ([failed], 1, 0, 100)
    assert await listed("?volume_name=v0") == ([failed, made[0]], 2, 0, 100)
    assert await listed("?correlation_id=c1&status=completed") == ([made[3], made[1]], 2, 0, 100)
    assert await listed(f"?id_prefix={failed[:8].upper()}") == ([failed], 1, 0, 100)
    assert await listed(f"?id_prefix={failed}&status=completed") == ([], 0, 0, 100)
    assert await listed("?volume_name=null") == ([], 0, 0, 100)
    assert await listed("?offset=100") == ([], 5, 100, 100)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=", "limit=1.5", "offset=-1", "offset=9999999999999999999",
     "status=done", "status=null", "limit=null", "status=",
     "volume_name=", "correlation_id=", "limit=%FF", "id_prefix=", "id_prefix=f47ac10", "id_prefix=f47ac10g"],
)  # fmt: skip
async def test_list_jobs_invalid_query(service, query):
    name = query.split("=", maxsplit=1)[0]
    await refused(await service.call("GET", f"/api/v1/jobs?{query}"), 400, "invalid request", f"^{name} (must|is) ")


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/jobs?state=failed", "^unknown query parameter 'state'; allowed: offset, limit, status, volume_name"),
        ("GET", "/jobs?limit=1&limit=2", "^query parameter 'limit' is given more than once$"),
        ("GET", f"/jobs/{UNKNOWN}?verbose=1", "^unknown query parameter 'verbose'; there are none here$"),
        ("POST", "/jobs?dryrun=true", "^unknown query parameter 'dryrun'"),
        ("POST", "/cache/prune?force", "^unknown query parameter 'force'"),
        ("GET", "/volumes?target=a", "^unknown query parameter 'target'; allowed: offset, limit$"),
    ],
)
async def test_unknown_query_parameter(service, method, path, message):
    """Ignored, it would do something else than the caller meant."""
    await refused(await service.call(method, f"/api/v1{path}"), 400, "invalid request", message)
    assert (await service.call("GET", "/health?probe=1", role=None)).status_code == 200


async def test_cancel_waits_for_rollback(service):
    service.converter.steps.hang_at = "block"
    job_id = (await (await service.submit()).get_json())["job_id"]
    await service.converter.steps.reached.wait()
    body = await held(await service.call("GET", f"/api/v1/jobs/{job_id}"), "Job")
    assert body["status"] == "running"
    assert body["progress"]["stage"] in {"downloading", "verifying", "converting"}
    cancelled = await held(await service.call("POST", f"/api/v1/jobs/{job_id}/cancel"), "JobCancelled")
    assert cancelled == {"status": "cancelled", "job_id": job_id}
    assert service.target.leftovers() == []
    assert (await service.ended(job_id))["status"] == "cancelled"
    await refused(
        await service.call("POST", f"/api/v1/jobs/{job_id}/cancel"),
        400,
        "failed to cancel job",
        "^cannot cancel job in 'cancelled' status$",
    )


async def test_cancel_pending_job(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    assert (await held(await idle.call("POST", f"/api/v1/jobs/{job_id}/cancel"), "JobCancelled"))["job_id"] == job_id


async def test_cancel_pending_job_concurrently(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    answers = []

    async def cancel():
        answers.append((await idle.call("POST", f"/api/v1/jobs/{job_id}/cancel")).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(cancel)
    assert set(answers) <= {200, 400}
    assert 200 in answers
    assert (await (await idle.call("GET", f"/api/v1/jobs/{job_id}")).get_json())["status"] == "cancelled"


async def test_cancel_completed_job(service):
    job_id = (await service.done())["job_id"]
    response = await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    assert await held(response, "ErrorResponse", 400) == {
        "error": "failed to cancel job",
        "message": "cannot cancel job in 'completed' status",
        "code": 400,
        "reason": "job-ended",
    }
