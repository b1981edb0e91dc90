"""The API reference from its first section to its last: fields present and absent, values, statuses and headers.

Each test is one statement of the reference; the ``test_contract_*`` modules beside this one go into each route's depth.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

import pytest
import structlog
import trio
from structlog.testing import LogCapture

from provisioner.config import AuthSettings, JobSettings, NamedImage, ServerSettings
from provisioner.tls.peer_certificate import PeerCertificate
from tests.contents import first_bytes
from tests.provisioner.api.conftest import ABSENT, DIGEST, IMAGE, URL, job, running
from tests.provisioner.api.document import UUID, held, refused

TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
JOBS = "/api/v1/jobs"
STAGES = [
    "queued", "checking_cache", "downloading", "verifying", "allocating", "converting", "populating", "finalizing",
]  # fmt: skip
OPEN = ["/health", "/healthz", "/livez", "/readyz", "/metrics"]


async def body_of(response, status=200):
    body = await response.get_json()
    assert response.status_code == status, body
    return body


# --- every response ---


async def test_times_are_utc(service):
    done = await service.done()
    now = datetime.now(UTC)
    for field in ("created_at", "updated_at"):
        assert re.fullmatch(TIMESTAMP, done[field])
        assert abs((now - datetime.fromisoformat(done[field])).total_seconds()) < 120


@pytest.mark.parametrize(("sent", "kept"), [("a" * 128, True), ("a" * 129, False), ("a b", False), ("é", False)])
async def test_sane_request_id_is_echoed(idle, sent, kept):
    answered = (await idle.call("GET", JOBS, headers={"X-Request-ID": sent})).headers["X-Request-ID"]
    assert answered == sent if kept else re.fullmatch(UUID, answered)


async def test_correlation_id_is_the_request_id_of_a_caller_without_one(idle):
    assert (await idle.submit(job(correlation_id="deploy-1"))).headers["X-Request-ID"] == "deploy-1"
    own = {"X-Request-ID": "mine"}
    answer = await idle.submit(job("web-02", correlation_id="deploy-1"), headers=own)
    assert answer.headers["X-Request-ID"] == "mine"


async def test_each_request_has_a_new_id(idle):
    ids = [(await idle.call("GET", path, role=None)).headers["X-Request-ID"] for path in (*OPEN, JOBS, "/nothing")]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(UUID, one) for one in ids)


async def test_request_id_is_in_every_line_of_the_job(service):
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    try:
        answer = await service.submit(headers={"X-Request-ID": "trace-1"})
        job_id = (await answer.get_json())["job_id"]
        await service.ended(job_id)
    finally:
        structlog.configure(processors=before)
    lines = [line for line in capture.entries if line.get("job_id") == job_id]
    assert {"job accepted", "job started", "job ended"} <= {line["event"] for line in lines}
    assert {line["request_id"] for line in lines} == {"trace-1"}


# --- who may call ---


@pytest.mark.parametrize("headers", [{}, {"X-API-Token": "wrong"}, {"Authorization": "Bearer wrong"}])
async def test_no_valid_credential(idle, headers):
    await refused(await idle.call("GET", JOBS, role=None, headers=headers), 401, "unauthorized", ".")


async def test_token_in_either_header(idle):
    for headers in ({"X-API-Token": idle.token["viewer"]}, {"Authorization": f"Bearer {idle.token['viewer']}"}):
        assert (await idle.call("GET", JOBS, role=None, headers=headers)).status_code == 200


async def test_client_certificate(folder, monkeypatch):
    shown = PeerCertificate("CN=ci", ("ci",), "01", "00" * 32)
    monkeypatch.setattr("provisioner.api.middleware.peer_certificate", lambda: shown)
    async with running(folder, auth=AuthSettings(default_certificate_role="viewer"), work=False) as service:
        assert (await service.call("GET", JOBS, role=None)).status_code == 200
        await refused(await service.submit(role=None), 403, "forbidden", ".")


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
async def test_role_does_not_allow_the_call(idle, role):
    statuses = {
        "submit": (await idle.submit(role=role)).status_code,
        "prune": (await idle.call("POST", "/api/v1/cache/prune", role=role)).status_code,
    }
    allowed = {"viewer": (403, 403), "operator": (202, 403), "admin": (202, 200)}[role]
    assert statuses == dict(zip(("submit", "prune"), allowed, strict=True))


@pytest.mark.parametrize("path", OPEN)
async def test_open_path(idle, path):
    assert (await idle.call("GET", path, role=None)).status_code == 200


async def test_metrics_can_be_closed(folder):
    async with running(folder, auth=AuthSettings(open_metrics=False), work=False) as service:
        assert (await service.call("GET", "/metrics", role=None)).status_code == 401
        assert (await service.call("GET", "/metrics", role="viewer")).status_code == 200


# --- POST /jobs ---


async def test_submit_answers_with_id_and_location(idle):
    answer = await idle.submit()
    body = await body_of(answer, 202)
    assert body.keys() == {"job_id"}
    assert str(uuid.UUID(body["job_id"])) == body["job_id"]
    assert answer.headers["Location"] == f"{JOBS}/{body['job_id']}"


async def test_dry_run_changes_nothing(service):
    plan = await held(await service.call("POST", f"{JOBS}?dry_run=true", json=job()), "Plan")
    assert plan["refusals"] == []
    assert (await body_of(await service.call("GET", JOBS)))["count"] == 0
    assert (await body_of(await service.call("GET", "/api/v1/cache/images")))["count"] == 0
    assert service.target.leftovers() == []


@pytest.mark.parametrize("blank", ["", None])
@pytest.mark.parametrize("field", ["image_type", "correlation_id", "target", "checksum", "image", "priority"])
async def test_blank_optional_field_is_absent(idle, field, blank):
    assert (await idle.submit({**job(), field: blank})).status_code == 202


async def test_unknown_field_and_query_key(idle):
    await refused(await idle.submit(job(volume="x")), 400, "invalid request", "'volume'")
    for path in (JOBS, f"{JOBS}/{uuid.uuid4()}", "/api/v1/volumes", "/api/v1/whoami"):
        await refused(await idle.call("GET", f"{path}?sort=up"), 400, "invalid request", "'sort'")


@pytest.mark.parametrize("missing", ["image_url", "volume_name"])
async def test_required_field(idle, missing):
    body = {name: value for name, value in job().items() if name != missing}
    await refused(await idle.submit(body), 400, "invalid request", f"^{missing} is required$")


async def test_url_of_no_source_is_never_fetched(service):
    await refused(await service.submit(job(image_url="http://elsewhere.example/x")), 400, "invalid request", ".")
    assert service.source.opens == []


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/b", ".", ".."])
async def test_volume_name_is_never_a_path(service, name):
    response = await service.submit(job(name))
    if response.status_code == 202:  # the target's own rules are applied by the job
        ended = await service.ended((await response.get_json())["job_id"])
        assert ended["status"] == "failed"
    else:
        await refused(response, 400, "invalid request", ".")
    assert service.target.leftovers() == []


@pytest.mark.parametrize("size", [0, -1, 1.5, "1"])
async def test_size_is_a_whole_number_of_at_least_one(idle, size):
    await refused(await idle.submit(job(volume_size_gb=size)), 400, "invalid request", "volume_size_gb")


async def test_smallest_size_that_fits(service):
    body = {name: value for name, value in job().items() if name != "volume_size_gb"}
    assert (await service.done(body))["volume"]["size_bytes"] == 1024**3


async def test_size_is_in_gib(service):
    assert (await service.done(job(volume_size_gb=2)))["volume"]["size_bytes"] == 2 * 1024**3


async def test_size_left_out(service):
    assert (await service.done(job(volume_size_gb=None)))["volume"]["size_bytes"] == 1024**3


async def test_image_type_is_qcow2_if_absent(idle):
    body = {name: value for name, value in job().items() if name != "image_type"}
    job_id = (await body_of(await idle.submit(body), 202))["job_id"]
    assert (await body_of(await idle.call("GET", f"{JOBS}/{job_id}")))["request"]["image_type"] == "qcow2"


async def test_unknown_image_type_and_target(service):
    for wrong in ({"image_type": "vmdk"}, {"target": "nowhere"}):
        response = await service.submit(job(**wrong))
        if response.status_code == 202:
            assert (await service.ended((await response.get_json())["job_id"]))["status"] == "failed"
        else:
            assert response.status_code == 400


async def test_default_target(service):
    assert (await service.done())["volume"]["target"] == "fake"


@pytest.mark.parametrize("checksum", [DIGEST, f"sha256:{DIGEST}", DIGEST.upper()])
async def test_checksum_of_the_request_wins(service, checksum):
    service.source.images[f"{URL}.sha256"] = type(service.source.images[URL])(b"0" * 64)
    assert (await service.done(job(checksum=checksum)))["status"] == "completed"


async def test_named_image(folder):
    named = {"golden": NamedImage(url=URL, image_type="raw")}
    async with running(folder, images=named) as service:
        done = await service.done({"image": "golden", "volume_name": "web-01", "volume_size_gb": 1})
        assert (done["status"], done["image_url"]) == ("completed", URL)


async def test_higher_priority_starts_first(folder):
    async with running(folder, jobs=JobSettings(max_concurrent=1)) as service:
        service.converter.steps.hang_at = "flush"
        first = (await body_of(await service.submit(job("first")), 202))["job_id"]
        await service.converter.steps.reached.wait()
        low = (await body_of(await service.submit(job("low")), 202))["job_id"]
        high = (await body_of(await service.submit(job("high", priority=5)), 202))["job_id"]
        service.converter.steps.hang_at = None
        await service.call("POST", f"{JOBS}/{first}/cancel")
        created = [await service.ended(one) for one in (low, high)]
        assert [one["status"] for one in created] == ["completed", "completed"]
        assert _written_at(service, "high") < _written_at(service, "low")


def _written_at(service, name):
    return (service.folder / "volumes" / name).stat().st_mtime_ns


async def test_idempotency_key(idle):
    key = {"Idempotency-Key": "k-1"}
    first = await body_of(await idle.submit(headers=key), 202)
    assert await body_of(await idle.submit(headers=key), 202) == {**first, "repeated": True}
    await refused(await idle.submit(job("web-02"), headers=key), 409, "conflict", ".")


async def test_second_job_for_a_volume(idle):
    job_id = (await body_of(await idle.submit(), 202))["job_id"]
    await refused(await idle.submit(), 409, "conflict", job_id)


async def test_full_queue(folder):
    async with running(folder, work=False, jobs=JobSettings(max_queued=1)) as service:
        await service.submit()
        answer = await service.submit(job("web-02"))
        await refused(answer, 429, "too many requests", "1 jobs are waiting")
        assert int(answer.headers["Retry-After"]) > 0


async def test_stopping_service(idle):
    await idle.services.supervisor.drain()
    await refused(await idle.submit(), 503, "service unavailable", ".")
    assert (await idle.call("GET", "/readyz", role=None)).status_code == 503


# --- GET /jobs/{job_id} ---


async def test_pending_job(idle):
    job_id = (await body_of(await idle.submit(job(correlation_id="c-1")), 202))["job_id"]
    pending = await held(await idle.call("GET", f"{JOBS}/{job_id}"), "Job")
    assert (pending["status"], pending["correlation_id"], pending["attempts"]) == ("pending", "c-1", 0)
    assert pending["request"] == {**job(), "priority": 0}
    assert not pending.keys() & {"cache_hit", "image_path", "error", "volume", "timings", "waiting_for"}


async def test_completed_job(service):
    done = await service.done(job(correlation_id="c-1"))
    assert done["progress"] == {
        "stage": "finalizing",
        "percent": 100,
        "bytes_processed": len(IMAGE),
        "bytes_total": len(IMAGE),
        "eta_sec": 0,
    }
    assert done["cache_hit"] is False
    assert done["image_path"].startswith("/")
    assert done["volume"].keys() == {"name", "path", "size_bytes", "target", "provisioned_by"}
    assert done["volume"]["provisioned_by"] == "copy"
    assert set(done["timings"]) <= set(STAGES)
    assert not done.keys() & {"error", "waiting_for"}
    assert (await service.done(job("web-02")))["cache_hit"] is True


async def test_failed_job(service):
    failed = await service.done(job(image_url=ABSENT, checksum=DIGEST))
    assert failed["status"] == "failed"
    assert isinstance(failed["error"], str)
    assert failed["error"]
    assert not failed.keys() & {"image_path", "volume"}


async def test_stages_come_in_their_order_and_percent_never_falls(service):
    service.source.chunk_size = 4096
    seen = []
    job_id = (await body_of(await service.submit(), 202))["job_id"]
    with trio.fail_after(30):
        while True:
            one = await body_of(await service.call("GET", f"{JOBS}/{job_id}"))
            if "progress" in one:
                seen.append((STAGES.index(one["progress"]["stage"]), one["progress"]["percent"]))
            if one["status"] == "completed":
                break
            await trio.lowlevel.checkpoint()
    assert seen == sorted(seen)
    assert all(0 <= percent <= 100 for _, percent in seen)


async def test_unknown_job(idle):
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
        body = await body_of(await idle.call(method, f"{JOBS}/{uuid.uuid4()}{path}"), 404)
        assert body.items() >= {"error": "job not found", "message": "job not found", "code": 404}.items()


# --- GET /jobs ---


async def test_list_of_jobs(idle):
    ids = [(await body_of(await idle.submit(job(f"v-{n}", correlation_id=f"c-{n}")), 202))["job_id"] for n in range(3)]
    page = await body_of(await idle.call("GET", f"{JOBS}?limit=2&offset=1"))
    assert [one["job_id"] for one in page["jobs"]] == ids[1::-1]
    assert (page["count"], page["offset"], page["limit"]) == (3, 1, 2)
    for query, wanted in (("volume_name=v-1", [ids[1]]), ("correlation_id=c-2", [ids[2]]), ("status=running", [])):
        assert [one["job_id"] for one in (await body_of(await idle.call("GET", f"{JOBS}?{query}")))["jobs"]] == wanted


async def test_jobs_survive_a_restart(folder):
    async with running(folder) as service:
        done = await service.done()
    (folder / "state" / "tokens.json").unlink()  # ``running`` makes its tokens anew
    async with running(folder) as service:
        assert (await body_of(await service.call("GET", JOBS)))["jobs"] == [done]


# --- POST /jobs/{job_id}/cancel and /retry ---


async def test_cancel(service):
    service.converter.steps.hang_at = "flush"
    job_id = (await body_of(await service.submit(), 202))["job_id"]
    await service.converter.steps.reached.wait()
    cancelled = await body_of(await service.call("POST", f"{JOBS}/{job_id}/cancel"))
    assert cancelled == {"status": "cancelled", "job_id": job_id}
    assert service.target.leftovers() == []


async def test_cancel_after_the_end(service):
    done = await service.done()
    answer = await body_of(await service.call("POST", f"{JOBS}/{done['job_id']}/cancel"), 400)
    message = "cannot cancel job in 'completed' status"
    assert answer.items() >= {"error": "failed to cancel job", "message": message, "code": 400}.items()


async def test_retry(service):
    done = await service.done(job(priority=3))
    again = await body_of(await service.call("POST", f"{JOBS}/{done['job_id']}/retry"), 202)
    assert again["job_id"] != done["job_id"]
    assert (await service.ended(again["job_id"]))["request"] == done["request"]


# --- host, cache and volumes ---


async def test_targets_sources_and_caller(idle):
    assert (await body_of(await idle.call("GET", "/api/v1/targets")))["targets"][0]["name"] == "fake"
    assert (await body_of(await idle.call("GET", "/api/v1/sources")))["sources"][0]["name"] == "http"
    assert (await body_of(await idle.call("GET", "/api/v1/whoami", role="viewer")))["role"] == "viewer"


async def test_cached_images(service):
    empty = await body_of(await service.call("GET", "/api/v1/cache/images"))
    assert empty == {"images": [], "count": 0, "offset": 0, "limit": 100}
    await service.done()
    (image,) = (await body_of(await service.call("GET", "/api/v1/cache/images")))["images"]
    assert (image["checksum"], image["digest"], image["size"]) == (DIGEST, f"sha256:{DIGEST}", len(IMAGE))
    assert (image["url"], image["format"], image["virtual_size"], image["pinned"]) == (URL, "raw", len(IMAGE), False)
    assert re.fullmatch(TIMESTAMP, image["last_used_at"])
    assert image["path"].startswith("/")


async def test_fetch_into_the_cache(service):
    await refused(
        await service.call("POST", "/api/v1/cache/fetch", json={}), 400, "invalid request", "image_url is req"
    )
    asked = {"image_url": URL, "checksum": DIGEST, "image_type": "raw"}
    job_id = (await body_of(await service.call("POST", "/api/v1/cache/fetch", json=asked), 202))["job_id"]
    assert "volume" not in await service.ended(job_id)
    assert service.target.leftovers() == []


@pytest.mark.parametrize("digest", [DIGEST, f"sha256:{DIGEST}"])
async def test_pin_and_remove_a_cached_image(service, digest):
    await service.done()
    path = f"/api/v1/cache/images/{digest}"
    assert (await body_of(await service.call("PUT", f"{path}/pin")))["status"] == "pinned"
    assert (await body_of(await service.call("POST", "/api/v1/cache/prune")))["removed"] == []
    assert (await body_of(await service.call("DELETE", f"{path}/pin")))["status"] == "unpinned"
    assert (await body_of(await service.call("DELETE", path)))["status"] == "removed"


async def test_cached_image_in_use(service):
    service.converter.steps.hang_at = "flush"
    await service.submit(job(checksum=DIGEST))
    await service.converter.steps.reached.wait()
    with trio.fail_after(60):
        while not service.services.cache.entries():  # noqa: ASYNC110 - publishing is not announced
            await trio.sleep(0.005)
    answer = await service.call("DELETE", f"/api/v1/cache/images/{DIGEST}")
    await refused(answer, 409, "conflict", "in use")


async def test_volumes(service):
    done = await service.done()
    (volume,) = (await body_of(await service.call("GET", "/api/v1/volumes")))["volumes"]
    assert (volume["name"], volume["target"], volume["size_bytes"]) == ("web-01", "fake", 1024**3)
    assert (volume["image_url"], volume["checksum"], volume["job_id"]) == (URL, DIGEST, done["job_id"])
    assert re.fullmatch(TIMESTAMP, volume["created_at"])


async def test_replaced_volume_is_kept_and_restored(service):
    (service.folder / "volumes" / "web-01").write_bytes(b"theirs".ljust(2**20, b"\0"))
    done = await service.done()
    replaced = done["replaced"]
    assert (replaced["name"], replaced["ours"]) == ("web-01", False)
    assert re.fullmatch(TIMESTAMP, replaced["kept_until"])
    path = "/api/v1/volumes/fake/web-01"
    assert (await body_of(await service.call("POST", f"{path}/restore")))["restored_from"] == replaced["kept_as"]
    assert first_bytes(service.folder / "volumes" / "web-01", 6) == b"theirs"
    assert (await body_of(await service.call("POST", f"{path}/adopt")))["status"] == "adopted"
    assert [one["name"] for one in (await body_of(await service.call("GET", "/api/v1/volumes")))["volumes"]] == [
        "web-01"
    ]


async def test_remove_a_volume(service):
    path = "/api/v1/volumes/fake/web-01"
    assert (await service.call("DELETE", path)).status_code == 404
    await service.done()
    service.target.in_use.add("web-01")
    await refused(await service.call("DELETE", path), 409, "conflict", ".")
    service.target.in_use.clear()
    assert (await body_of(await service.call("DELETE", path)))["status"] == "removed"


async def test_resize_a_volume(service):
    """It only grows; unknown or not ours is 404, in use 409."""
    resize = "/api/v1/volumes/fake/web-01/resize"
    assert (await service.call("POST", resize, json={"volume_size_gb": 2})).status_code == 404
    await service.done()
    body = await body_of(await service.call("POST", resize, json={"volume_size_gb": 2}))
    assert (body["name"], body["target"], body["size_bytes"]) == ("web-01", "fake", 2 * 2**30)
    assert (await service.call("POST", resize, json={"volume_size_gb": 1})).status_code == 409
    service.target.in_use.add("web-01")
    assert (await service.call("POST", resize, json={"volume_size_gb": 3})).status_code == 409


async def test_volume_under_a_job_is_not_removed(service):
    service.converter.steps.hang_at = "flush"
    await service.submit()
    await service.converter.steps.reached.wait()
    await refused(await service.call("DELETE", "/api/v1/volumes/fake/web-01"), 409, "conflict", ".")


# --- health, metrics, errors and limits ---


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez"])
async def test_health(idle, path):
    body = await body_of(await idle.call("GET", path, role=None))
    assert body.keys() == {"status", "timestamp", "version", "uptime"}
    assert re.fullmatch(TIMESTAMP, body["timestamp"])
    assert re.fullmatch(r"(\d+h)?(\d+m)?\d+s", body["uptime"])


@pytest.mark.parametrize("limit", [2, 1])
async def test_degraded_above_a_number_of_active_jobs(folder, limit):
    async with running(folder, work=False, server=ServerSettings(degraded_above=limit)) as service:
        for number in range(limit + 1):
            assert (await body_of(await service.call("GET", "/health", role=None)))["status"] == "healthy"
            await service.submit(job(f"v-{number}"))
        assert (await body_of(await service.call("GET", "/health", role=None)))["status"] == "degraded"


async def test_metrics(service):
    await service.done()
    await service.call("GET", f"{JOBS}/{uuid.uuid4()}")
    text = await (await service.call("GET", "/metrics", role=None)).get_data(as_text=True)
    prefix = "libvirt_volume_provisioner_"
    assert f'{prefix}requests_total{{endpoint="/api/v1/jobs/{{job_id}}",method="GET",status="404"}} 1.0' in text
    assert f'{prefix}jobs_total{{status="completed"}} 1.0' in text
    assert f"{prefix}active_jobs 0.0" in text
    for family in ("process_cpu_seconds_total", "python_info", "python_gc_collections_total"):
        assert family in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/api/v1/nothing", 404), ("PATCH", JOBS, 405), ("DELETE", "/health", 405)],
)
async def test_error_of_no_route(idle, method, path, status):
    body = await body_of(await idle.call(method, path, headers={"Content-Type": "application/json"}), status)
    assert body.keys() == {"error", "message", "code", "reason"}
    assert body["code"] == status


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"x"', b"\xff"])
async def test_body_that_is_not_a_json_object(idle, data):
    answer = await idle.call("POST", JOBS, data=data, headers={"Content-Type": "application/json"})
    await refused(answer, 400, "invalid request", ".")


async def test_body_that_is_not_json(idle):
    answer = await idle.call("POST", JOBS, data=b"a=b", headers={"Content-Type": "text/csv"})
    await refused(answer, 415, "unsupported media type", ".")


async def test_internal_error_names_only_its_request_id(service):
    service.target.steps.fail_at["remove"] = RuntimeError("secret detail")
    await service.done()
    answer = await service.call("DELETE", "/api/v1/volumes/fake/web-01", headers={"X-Request-ID": "trace-2"})
    body = await refused(answer, 500, "internal error", "trace-2")
    assert "secret" not in str(body)


async def test_two_jobs_at_once(service):
    service.converter.steps.hang_at = "flush"
    ids = [(await body_of(await service.submit(job(f"v-{n}")), 202))["job_id"] for n in range(3)]
    with trio.fail_after(60):
        while service.services.supervisor.snapshot(ids[1]) is None:  # noqa: ASYNC110 - starts are not announced
            await trio.sleep(0.005)
    await service.converter.steps.reached.wait()
    statuses = [(await body_of(await service.call("GET", f"{JOBS}/{one}")))["status"] for one in ids]
    assert statuses == ["running", "running", "pending"]


async def test_body_over_the_limit(idle):
    answer = await idle.call("POST", JOBS, data=b" " * 65537, headers={"Content-Type": "application/json"})
    await refused(answer, 413, "payload too large", "64 KiB")
