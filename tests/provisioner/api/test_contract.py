"""Every request and response of the API contract, against the real app; each answer is held against api.yaml."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest
import trio
import yaml
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from provisioner.config import JobSettings, ServerSettings
from provisioner.contracts.errors import TargetUnavailableError
from tests.provisioner.api.conftest import ABSENT, DIGEST, IMAGE, URL, job, running

DOCUMENT = yaml.safe_load((Path(__file__).parents[3] / "api.yaml").read_text())
REGISTRY = Registry().with_resource("urn:api", Resource(contents=DOCUMENT, specification=DRAFT4))
UUID = r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"


async def held(response, schema, status=200):
    """The body, of that status and shape."""
    assert response.content_type == "application/json"
    body = await response.get_json()
    assert response.status_code == status, body
    pointer = {"$ref": f"urn:api#/components/schemas/{schema}"}
    validator = OAS30Validator(pointer, registry=REGISTRY, format_checker=oas30_format_checker)
    assert [fault.message for fault in validator.iter_errors(body)] == []
    return body


async def refused(response, status, category, message):
    """The one shape of errors; ``message`` is a pattern."""
    body = await held(response, "Error", status)
    assert body.keys() == {"error", "message", "code"}
    assert (body["error"], body["code"]) == (category, status)
    assert re.search(message, body["message"]), body["message"]
    return body


# --- POST /jobs ---


async def test_accepted(service):
    response = await service.submit(job(correlation_id="deploy-4711", target="fake", checksum=f"sha256:{DIGEST}"))
    body = await held(response, "JobAccepted", 202)
    assert body.keys() == {"job_id"}
    assert re.fullmatch(UUID, body["job_id"])
    assert response.headers["Location"] == f"/api/v1/jobs/{body['job_id']}"
    assert (await service.ended(body["job_id"]))["status"] == "completed"
    assert (service.folder / "volumes" / "web-01").read_bytes()[: len(IMAGE)] == IMAGE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"volume_name": "a", "volume_size_gb": 1}, "^image_url is required$"),
        ({"image_url": URL, "volume_size_gb": 1}, "^volume_name is required$"),
        ({"image_url": URL, "volume_name": "a"}, "^volume_size_gb is required$"),
        (job(volume_size_gb=0), "^volume_size_gb: .*>= 1"),
        (job(volume_size_gb=2**40), "^volume_size_gb: "),
        (job(volume_size_gb=1.5), "^volume_size_gb: "),
        (job(volume_size_gb="1"), "^volume_size_gb: "),
        (job(volume_size_gb=True), "^volume_size_gb: "),
        (job(volume_size_gb=10**400), "."),
        (job(image_url=""), "^image_url: "),
        (job(image_url=None), "^image_url: "),
        (job(image_url="http://elsewhere.example/x"), "nothing was fetched"),
        (job(image_url="file:///etc/passwd"), "image_url|nothing was fetched"),
        (job(image_url="http://u:p@images.example/x"), "user name or password"),
        (job(image_url="http://images.example/a b"), "image_url"),
        (job(image_type="iso9660"), "image_type 'iso9660' is not known; there are: qcow2, raw"),
        (job(name="a/b"), "no volume name"),
        (job(name="../x"), "no volume name"),
        (job(name=""), "^volume_name: "),
        (job(target="nowhere"), "no block target 'nowhere' is configured; there are: fake"),
        (job(checksum="sha256:12"), "^checksum: "),
        (job(checksum="md5:" + 32 * "0"), "^checksum: "),
        (job(priority=1001), "^priority: "),
        (job(cheksum="x"), "^unknown field 'cheksum'; there are: image_url, volume_name"),
    ],
)
async def test_a_request_that_can_never_succeed(service, body, message):
    await refused(await service.submit(body), 400, "invalid request", message)
    assert service.source.opens == []
    assert service.source.steps.log == []
    assert (await (await service.call("GET", "/api/v1/jobs")).get_json())["count"] == 0


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"\x00", b"{}{}", b"[" * 60000, b'{"image_url": "\\ud800"}']
)
@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/cache/fetch"])
async def test_broken_json(service, path, raw):
    response = await service.call("POST", path, data=raw, headers={"Content-Type": "application/json"})
    await refused(response, 400, "invalid request", ".")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json5", "x"])
async def test_a_body_that_is_not_declared_as_json(service, kind):
    headers = {"Content-Type": kind} if kind else {}
    response = await service.call("POST", "/api/v1/jobs", data=b"{}", headers=headers)
    await refused(response, 415, "unsupported media type", "application/json")


async def test_json_may_name_its_charset(service):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    await refused(
        await service.call("POST", "/api/v1/jobs", data=b"{}", headers=headers), 400, "invalid request", "image_url"
    )


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/cache/fetch"])
async def test_a_body_over_64_kib(service, path):
    fits = await service.call("POST", path, data=b" " * 65536, headers={"Content-Type": "application/json"})
    assert fits.status_code == 400
    over = await service.call("POST", path, data=b" " * 65537, headers={"Content-Type": "application/json"})
    await refused(over, 413, "payload too large", "64 KiB")


async def test_a_second_job_for_the_volume(idle):
    first = (await held(await idle.submit(), "JobAccepted", 202))["job_id"]
    await refused(await idle.submit(), 409, "conflict", first)
    await held(await idle.submit(job("web-02")), "JobAccepted", 202)


async def test_idempotency_key(idle):
    key = {"Idempotency-Key": "k-1"}
    first = await held(await idle.submit(headers=key), "JobAccepted", 202)
    assert await held(await idle.submit(headers=key), "JobAccepted", 202) == first
    await refused(await idle.submit(job("other"), headers=key), 409, "conflict", "Idempotency-Key")
    someone_else = await idle.submit(job("other"), headers=key, role="operator")
    assert await held(someone_else, "JobAccepted", 202) != first


async def test_idempotency_key_of_a_job_that_ended(service):
    key = {"Idempotency-Key": "k-1"}
    first = await held(await service.submit(headers=key), "JobAccepted", 202)
    await service.ended(first["job_id"])
    assert await held(await service.submit(headers=key), "JobAccepted", 202) == first


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\xe9"])
async def test_an_idempotency_key_that_is_none(service, key):
    await refused(await service.submit(headers={"Idempotency-Key": key}), 400, "invalid request", "Idempotency-Key")


async def test_the_queue_is_full(tmp_path):
    async with running(tmp_path, work=False, jobs=JobSettings(max_queued=1)) as service:
        await held(await service.submit(), "JobAccepted", 202)
        response = await service.submit(job("web-02"))
        await refused(response, 429, "too many requests", "try again")
        assert int(response.headers["Retry-After"]) >= 1


async def test_shutting_down(service):
    await service.services.supervisor.drain()
    response = await service.submit()
    await refused(response, 503, "service unavailable", "stopping")
    assert int(response.headers["Retry-After"]) >= 1
    body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert body["reasons"] == ["the service is shutting down"]


# --- jobs ---


async def test_a_completed_job(service):
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


async def test_a_failed_job(service):
    body = await service.done(job(image_url=ABSENT))
    await held(await service.call("GET", f"/api/v1/jobs/{body['job_id']}"), "Job")
    assert body["status"] == "failed"
    assert body["error"]
    assert "image_path" not in body
    assert "volume" not in body


async def test_a_pending_job(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    body = await held(await idle.call("GET", f"/api/v1/jobs/{job_id}"), "Job")
    assert body["status"] == "pending"
    assert body["progress"] == {"stage": "queued", "percent": 0}
    assert "cache_hit" not in body
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["created_at"])


@pytest.mark.parametrize("job_id", [str(uuid.uuid4()), "x", "%00", "a%2Fb", "%F0%9F%92%A9", "x" * 5000])
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("POST", "/cancel")])
async def test_an_unknown_job(service, job_id, method, tail):
    response = await service.call(method, f"/api/v1/jobs/{job_id}{tail}")
    if "%2F" in job_id:
        await refused(response, 404, "not found", "nothing at this path")
    else:
        assert await held(response, "Error", 404) == {"error": "job not found", "message": "job not found", "code": 404}


async def test_the_list_of_jobs(service):
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
    assert await listed("?volume_name=null") == ([], 0, 0, 100)
    assert await listed("?offset=100") == ([], 5, 100, 100)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=", "limit=1.5", "offset=-1", "offset=9999999999999999999",
     "status=done", "status=null", "limit=null", "status=",
     "volume_name=", "correlation_id=", "limit=%FF", "limit=1&limit=x&offset=-1"],
)  # fmt: skip
async def test_a_query_that_makes_no_sense(service, query):
    name = query.split("=", maxsplit=1)[0] if query.count("=") == 1 else "offset"
    await refused(await service.call("GET", f"/api/v1/jobs?{query}"), 400, "invalid request", f"^{name}: ")


# --- cancel ---


async def test_cancel_of_a_running_job_answers_when_it_is_rolled_back(service):
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


async def test_cancel_of_a_pending_job(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    assert (await held(await idle.call("POST", f"/api/v1/jobs/{job_id}/cancel"), "JobCancelled"))["job_id"] == job_id


async def test_several_cancel_one_pending_job_at_once(idle):
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


async def test_cancel_of_a_completed_job(service):
    job_id = (await service.done())["job_id"]
    response = await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    assert await held(response, "Error", 400) == {
        "error": "failed to cancel job",
        "message": "cannot cancel job in 'completed' status",
        "code": 400,
    }


# --- cache ---


async def test_fetch_into_the_cache_and_remove(service):
    response = await service.call("POST", "/api/v1/cache/fetch", json={"image_url": URL, "image_type": "raw"})
    accepted = await held(response, "JobAccepted", 202)
    done = await service.ended(accepted["job_id"])
    assert done["status"] == "completed"
    assert "volume" not in done
    body = await held(await service.call("GET", "/api/v1/cache/images"), "CachedImageList")
    (image,) = body["images"]
    assert (body["count"], body["offset"], body["limit"]) == (1, 0, 100)
    assert image.keys() >= {"path", "size", "checksum", "url", "format", "virtual_size", "last_used_at", "pinned"}
    assert (image["size"], image["checksum"], image["url"]) == (len(IMAGE), f"sha256:{DIGEST}", URL)
    assert (await held(await service.call("GET", "/api/v1/cache/images?offset=1"), "CachedImageList"))["images"] == []
    removed = await service.call("DELETE", f"/api/v1/cache/images/sha256:{DIGEST.upper()}")
    assert await held(removed, "CachedImageRemoved") == {"status": "removed", "checksum": f"sha256:{DIGEST}"}
    await refused(await service.call("DELETE", f"/api/v1/cache/images/sha256:{DIGEST}"), 404, "not found", ".")
    assert not await trio.Path(image["path"]).exists()


async def test_fetch_of_nothing(service):
    response = await service.call("POST", "/api/v1/cache/fetch", json={})
    body = await refused(response, 400, "invalid request", ".")
    assert body["message"] == "image_url is required"


async def test_a_used_image_is_not_removed(service):
    service.converter.steps.hang_at = "flush"
    job_id = (await (await service.submit()).get_json())["job_id"]
    await service.converter.steps.reached.wait()
    with trio.fail_after(10):
        while not (await (await service.call("GET", "/api/v1/cache/images")).get_json())["count"]:  # noqa: ASYNC110
            await trio.sleep(0.005)  # publishing is not to be waited for from outside
    await refused(await service.call("DELETE", f"/api/v1/cache/images/sha256:{DIGEST}"), 409, "conflict", ".")
    pruned = await held(await service.call("POST", "/api/v1/cache/prune"), "CachePruned")
    assert pruned == {"removed": [], "freed_bytes": 0}
    await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")


async def test_prune(service):
    await service.done()
    body = await held(await service.call("POST", "/api/v1/cache/prune"), "CachePruned")
    assert body == {"removed": [f"sha256:{DIGEST}"], "freed_bytes": len(IMAGE)}


@pytest.mark.parametrize("checksum", ["x", "sha256:12", "sha1:" + 40 * "0", "%00"])
async def test_remove_of_what_is_no_checksum(service, checksum):
    await refused(
        await service.call("DELETE", f"/api/v1/cache/images/{checksum}"), 400, "invalid request", "^checksum must be"
    )


# --- volumes ---


async def test_volumes(service):
    made = await service.done()
    body = await held(await service.call("GET", "/api/v1/volumes"), "VolumeList")
    (volume,) = body["volumes"]
    assert (volume["name"], volume["target"], volume["size_bytes"]) == ("web-01", "fake", 2**30)
    assert (volume["job_id"], volume["image_url"], volume["checksum"]) == (made["job_id"], URL, f"sha256:{DIGEST}")
    removed = await service.call("DELETE", "/api/v1/volumes/fake/web-01")
    assert await held(removed, "VolumeRemoved") == {"status": "removed", "target": "fake", "name": "web-01"}
    await refused(await service.call("DELETE", "/api/v1/volumes/fake/web-01"), 404, "not found", "web-01")
    await refused(await service.call("DELETE", "/api/v1/volumes/nowhere/web-01"), 404, "not found", "nowhere")


async def test_a_used_volume_is_not_removed(service):
    await service.done()
    service.target.in_use.add("web-01")
    await refused(await service.call("DELETE", "/api/v1/volumes/fake/web-01"), 409, "conflict", "web-01")


async def test_a_volume_under_a_job_is_not_removed(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    await refused(await idle.call("DELETE", "/api/v1/volumes/fake/web-01"), 409, "conflict", job_id)


# --- health ---


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


# --- errors ---


@pytest.mark.parametrize("path", ["/", "/api", "/api/v1", "/api/v1/", "/api/v2/jobs", "/api/v1/jobs/", "/api//v1/jobs",
                                  "/health/", "/metrics/x", "/%00", "/favicon.ico", "/api/v1/jobs/a/b/c"])  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "TRACE", "PROPFIND"])
async def test_unknown_paths(service, path, method):
    await refused(await service.call(method, path), 404, "not found", "nothing at this path")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/v1/jobs", {"GET", "HEAD", "POST"}),
        ("OPTIONS", "/api/v1/jobs", {"GET", "HEAD", "POST"}),
        ("TRACE", "/api/v1/jobs", {"GET", "HEAD", "POST"}),
        ("PUT", "/api/v1/jobs/x", {"GET", "HEAD"}),
        ("GET", "/api/v1/jobs/x/cancel", {"POST"}),
        ("HEAD", "/api/v1/cache/prune", {"POST"}),
        ("GET", "/api/v1/volumes/a/b", {"DELETE"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("OPTIONS", "/metrics", {"GET", "HEAD"}),
        ("TRACE", "/readyz", {"GET", "HEAD"}),
        ("BREW", "/health", {"GET", "HEAD"}),
    ],
)
async def test_wrong_methods(service, method, path, allowed):
    response = await service.call(method, path)
    assert response.status_code == 405
    assert {word.strip() for word in response.headers["Allow"].split(",")} == allowed
    if method != "HEAD":
        await refused(response, 405, "method not allowed", ".")


async def test_an_unexpected_error_leaks_nothing_but_its_id(service):
    service.target.steps.fail_at["list"] = RuntimeError("secret of the inside")
    response = await service.call("GET", "/api/v1/volumes", headers={"X-Request-ID": "req-1"})
    body = await refused(response, 500, "internal error", "req-1")
    assert "secret" not in str(body)


# --- request ids ---


@pytest.mark.parametrize("given", ["req-1", "x" * 128, "!~"])
async def test_a_sane_request_id_comes_back(service, given):
    for path in ("/health", "/api/v1/jobs", "/nothing"):
        assert (await service.call("GET", path, headers={"X-Request-ID": given})).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "\xe9", "a\tb"])
async def test_another_request_id_is_passed_over(service, given):
    for path in ("/health", "/api/v1/jobs", "/nothing"):
        response = await service.call("GET", path, headers={"X-Request-ID": given})
        assert re.fullmatch(UUID, response.headers["X-Request-ID"])


async def test_the_correlation_id_names_the_request_unless_the_caller_did(idle):
    response = await idle.submit(job("a", correlation_id="deploy-1"))
    assert response.headers["X-Request-ID"] == "deploy-1"
    response = await idle.submit(job("b", correlation_id="deploy-1"), headers={"X-Request-ID": "req-1"})
    assert response.headers["X-Request-ID"] == "req-1"
    response = await idle.submit(job("c", correlation_id="not sane"))
    assert re.fullmatch(UUID, response.headers["X-Request-ID"])


async def test_errors_carry_the_request_id_too(service):
    for role in (None, "viewer", "admin"):
        response = await service.submit({"image_url": 1}, role=role, headers={"X-Request-ID": "req-1"})
        assert response.status_code >= 400
        assert response.headers["X-Request-ID"] == "req-1"
