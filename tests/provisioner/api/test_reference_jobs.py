"""Walks through the API reference: requests, the routes of jobs, and what a job's fields are in each state."""

from __future__ import annotations

import re

import pytest
import trio
import trio.lowlevel

from provisioner.config import JobSettings
from tests.provisioner.api.conftest import DIGEST, IMAGE, job, running
from tests.provisioner.api.document import UUID, held, refused

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
STAGES = [
    "queued", "checking_cache", "downloading", "verifying", "allocating", "converting", "populating", "finalizing",
]  # fmt: skip
ALWAYS = {"job_id", "status", "created_at", "updated_at"}


async def accepted(service, body=None, **more):
    response = await service.submit(body, **more)
    return (await held(response, "JobAccepted", 202))["job_id"]


async def shown(service, job_id):
    return await held(await service.call("GET", f"/api/v1/jobs/{job_id}"), "Job")


# --- every request ---


@pytest.mark.parametrize(("sent", "echoed"), [("r-1", True), ("x" * 128, True), ("x" * 129, False), ("a b", False)])
async def test_request_id(idle, sent, echoed):
    """The caller's own if it is sane, else the correlation id, else a new UUID."""
    response = await idle.call("GET", "/api/v1/jobs", headers={"X-Request-ID": sent})
    assert (response.headers["X-Request-ID"] == sent) is echoed
    assert echoed or re.fullmatch(UUID, response.headers["X-Request-ID"])
    given = {"X-Request-ID": sent}
    response = await idle.submit(job(correlation_id="deploy-1"), headers=given)
    assert response.headers["X-Request-ID"] == (sent if echoed else "deploy-1")


async def test_callers(service):
    """No credential is 401, a role that does not suffice 403; the token may come in either header."""
    await refused(await service.call("GET", "/api/v1/jobs", role=None), 401, "unauthorized", ".")
    await refused(await service.submit(role="viewer"), 403, "forbidden", ".")
    for header, prefix in (("X-API-Token", ""), ("Authorization", "Bearer ")):
        sent = {header: prefix + service.token["viewer"]}
        assert (await service.call("GET", "/api/v1/jobs", role=None, headers=sent)).status_code == 200
    for path in ("/health", "/healthz", "/livez", "/readyz", "/metrics"):
        assert (await service.call("GET", path, role=None)).status_code == 200


# --- POST /jobs ---


async def test_submit(idle):
    response = await idle.submit()
    body = await held(response, "JobAccepted", 202)
    assert body.keys() == {"job_id"}
    assert re.fullmatch(UUID, body["job_id"])
    assert response.headers["Location"] == f"/api/v1/jobs/{body['job_id']}"


@pytest.mark.parametrize("field", ["image_url", "volume_name", "volume_size_gb"])
async def test_required_fields(idle, field):
    body = job()
    del body[field]
    await refused(await idle.submit(body), 400, "invalid request", f"{field} is required")


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_url": "https://elsewhere.example/x"},
        {"volume_name": "../x"},
        {"volume_name": "a/b"},
        {"volume_size_gb": 0},
        {"volume_size_gb": 1.5},
        {"volume_size_gb": "1"},
        {"image_type": "iso"},
        {"target": "nowhere"},
        {"checksum": "sha256:12"},
        {"priority": "high"},
        {"unknown": 1},
    ],
    ids=str,
)
async def test_invalid_fields(idle, wrong):
    """Nothing is fetched, and no job is stored."""
    await refused(await idle.submit(job(**wrong)), 400, "invalid request", ".")
    assert idle.source.steps.log == []
    assert (await (await idle.call("GET", "/api/v1/jobs")).get_json())["count"] == 0


async def test_blank_optional_fields(idle):
    """Empty strings and nulls count as absent; the image type is then qcow2."""
    optional = ("image_type", "correlation_id", "target", "checksum")
    for number, blank in enumerate(("", None)):
        body = await shown(idle, await accepted(idle, job(f"v{number}", **dict.fromkeys(optional, blank))))
        assert "correlation_id" not in body
        assert (body["request"]["image_type"], body["request"]["priority"]) == ("qcow2", 0)
    await accepted(idle, job("v2", priority=None))


@pytest.mark.parametrize("checksum", [f"sha256:{DIGEST}", DIGEST, f"SHA256:{DIGEST.upper()}"])
async def test_checksum_forms(service, checksum):
    assert (await service.done(job(checksum=checksum)))["status"] == "completed"


async def test_checksum_wins_over_sidecar(service):
    ended = await service.done(job(checksum=64 * "0"))
    assert ended["status"] == "failed"
    assert DIGEST in ended["error"]


async def test_unknown_query(idle):
    response = await idle.call("POST", "/api/v1/jobs?dry=true", json=job())
    await refused(response, 400, "invalid request", "'dry'")


async def test_dry_run(idle):
    response = await idle.call("POST", "/api/v1/jobs?dry_run=true", json=job())
    await held(response, "Plan")
    assert (await (await idle.call("GET", "/api/v1/jobs")).get_json())["count"] == 0


async def test_priority(tmp_path):
    """The job with the higher priority starts first among the queued."""
    async with running(tmp_path, jobs=JobSettings(max_concurrent=1)) as service:
        service.source.steps.hang_at = "stat"
        first = await accepted(service, job("v0"))
        await service.source.steps.reached.wait()
        low, high = await accepted(service, job("v1")), await accepted(service, job("v2", priority=5))
        service.source.steps.hang_at = None
        await service.call("POST", f"/api/v1/jobs/{first}/cancel")
        ends = [await service.ended(one) for one in (high, low)]
        created = [one["volume"]["name"] for one in ends]
        assert created == ["v2", "v1"]
        made = [volume["job_id"] for volume in await volumes_in_order(service)]
        assert made == [high, low]


async def volumes_in_order(service):
    """The volumes in the order in which their jobs ended."""
    folder = service.folder / "volumes"
    listed = (await (await service.call("GET", "/api/v1/volumes")).get_json())["volumes"]
    return sorted(listed, key=lambda one: (folder / one["name"]).stat().st_mtime_ns)


async def test_idempotency_key(idle):
    key = {"Idempotency-Key": "k"}
    first = await accepted(idle, headers=key)
    assert await accepted(idle, headers=key) == first
    await refused(await idle.submit(job("other"), headers=key), 409, "conflict", first)


async def test_second_job_for_a_volume(idle):
    first = await accepted(idle)
    await refused(await idle.submit(), 409, "conflict", first)


async def test_full_queue_and_shutdown(tmp_path):
    async with running(tmp_path, work=False, jobs=JobSettings(max_queued=1)) as service:
        await accepted(service)
        full = await service.submit(job("other"))
        await refused(full, 429, "too many requests", ".")
        assert int(full.headers["Retry-After"]) > 0
        await service.services.supervisor.drain()
        await refused(await service.submit(job("third")), 503, "service unavailable", "stopping")


async def test_two_jobs_at_once(tmp_path):
    """By default two run; further ones wait in the queue."""
    async with running(tmp_path) as service:
        service.source.steps.hang_at = "stat"
        for number in range(3):
            await accepted(service, job(f"v{number}"))
        with trio.fail_after(10):
            while service.source.steps.log.count("stat") < 2:  # noqa: ASYNC110
                await trio.sleep(0.005)
        listed = (await (await service.call("GET", "/api/v1/jobs")).get_json())["jobs"]
        assert [one["status"] for one in listed] == ["pending", "running", "running"]


# --- GET /jobs/{job_id} ---


async def test_pending_job(idle):
    body = await shown(idle, await accepted(idle))
    assert body.keys() >= ALWAYS
    assert (body["status"], body["progress"]["stage"], body["progress"]["percent"]) == ("pending", "queued", 0)
    assert body.keys().isdisjoint({"error", "image_path", "cache_hit", "volume", "correlation_id"})
    for field in ("created_at", "updated_at"):
        assert re.fullmatch(TIME, body[field])


async def test_running_job(service):
    service.source.at_byte, service.source.steps.hang_at = len(IMAGE) // 2, "byte"
    job_id = await accepted(service, job(correlation_id="c-1"))
    await service.source.steps.reached.wait()
    body = await shown(service, job_id)
    assert (body["status"], body["correlation_id"]) == ("running", "c-1")
    assert body["progress"]["stage"] in STAGES
    assert 0 <= body["progress"]["percent"] <= 100
    assert body.keys().isdisjoint({"error", "image_path", "volume"})
    await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")


async def test_completed_job(service):
    body = await held(await service.call("GET", f"/api/v1/jobs/{(await service.done())['job_id']}"), "Job")
    assert body.keys() >= ALWAYS | {"image_path", "cache_hit", "volume", "timings", "request", "attempts"}
    assert body.keys().isdisjoint({"error", "waiting_for"})
    progress = body["progress"]
    assert (progress["stage"], progress["percent"], progress["eta_sec"]) == ("finalizing", 100, 0)
    assert progress["bytes_processed"] == progress["bytes_total"] > 0
    assert body["volume"].keys() >= {"name", "path", "size_bytes", "target", "provisioned_by"}
    assert body["volume"]["provisioned_by"] in {"copy", "clone"}
    assert body["cache_hit"] is False
    assert body["timings"].keys() <= set(STAGES)
    assert body["request"]["volume_size_gb"] == 1
    assert (await service.done(job("again")))["cache_hit"] is True


async def test_failed_job(service):
    body = await service.done(job(checksum=64 * "0"))
    assert body["status"] == "failed"
    assert body.keys().isdisjoint({"image_path", "volume"})
    assert "rolled back" in body["error"] or "removed" in body["error"]


async def test_percent_never_falls(service):
    """Seen by a client that polls; a finished job is at 100."""
    job_id, seen = await accepted(service), []
    with trio.fail_after(30):
        while True:
            body = await shown(service, job_id)
            if "progress" in body:
                seen.append(body["progress"]["percent"])
            if body["status"] == "completed":
                break
            await trio.lowlevel.checkpoint()
    assert seen == sorted(seen)
    assert seen[-1] == 100


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("POST", "/cancel"), ("POST", "/retry")])
async def test_unknown_job(idle, method, tail):
    response = await idle.call(method, f"/api/v1/jobs/x{tail}")
    body = await refused(response, 404, "job not found", ".")
    assert body == {"error": "job not found", "message": "job not found", "code": 404}


# --- GET /jobs, cancel, retry ---


async def test_list(idle):
    ids = [await accepted(idle, job(f"v{number}", correlation_id=f"c{number}")) for number in range(3)]

    async def listed(query=""):
        body = await held(await idle.call("GET", f"/api/v1/jobs{query}"), "JobList")
        assert body.keys() == {"jobs", "count", "offset", "limit"}
        return [one["job_id"] for one in body["jobs"]], body["count"]

    assert await listed() == (ids[::-1], 3)
    assert await listed("?limit=1&offset=1") == ([ids[1]], 3)
    assert await listed("?volume_name=v0") == ([ids[0]], 1)
    assert await listed("?correlation_id=c2") == ([ids[2]], 1)
    assert await listed("?status=pending") == (ids[::-1], 3)
    assert await listed("?status=failed") == ([], 0)


async def test_list_survives_restart(tmp_path):
    async with running(tmp_path) as service:
        done = await service.done()
    (tmp_path / "state" / "tokens.json").unlink()  # the fixture makes its tokens anew
    async with running(tmp_path) as service:
        body = await held(await service.call("GET", "/api/v1/jobs"), "JobList")
        assert [(one["job_id"], one["status"]) for one in body["jobs"]] == [(done["job_id"], "completed")]


async def test_cancel(service):
    service.converter.steps.hang_at = "flush"
    job_id = await accepted(service)
    await service.converter.steps.reached.wait()
    body = await held(await service.call("POST", f"/api/v1/jobs/{job_id}/cancel"), "JobCancelled")
    assert body == {"status": "cancelled", "job_id": job_id}
    assert service.target.leftovers() == []
    assert (await shown(service, job_id))["status"] == "cancelled"


async def test_cancel_ended_job(service):
    done = await service.done()
    response = await service.call("POST", f"/api/v1/jobs/{done['job_id']}/cancel")
    body = await refused(response, 400, "failed to cancel job", ".")
    assert body["message"] == "cannot cancel job in 'completed' status"


async def test_retry(service):
    done = await service.done(job(correlation_id="c-1"))
    again = (await held(await service.call("POST", f"/api/v1/jobs/{done['job_id']}/retry"), "JobAccepted", 202))[
        "job_id"
    ]
    assert again != done["job_id"]
    assert (await service.ended(again))["request"] == done["request"]
