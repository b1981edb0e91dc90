"""Walks through the API reference: cache, volumes, host, health, metrics, errors and limits."""

from __future__ import annotations

import re

import pytest
import trio

from provisioner.config import ServerSettings
from tests.provisioner.api.conftest import DIGEST, IMAGE, URL, job, running
from tests.provisioner.api.document import UUID, held, refused

OTHER = "sha256:" + 64 * "0"
PREFIX = "libvirt_volume_provisioner_"


async def images(service, query=""):
    return await held(await service.call("GET", f"/api/v1/cache/images{query}"), "CachedImageList")


# --- cache ---


async def test_fetch(service):
    """It downloads, verifies and keeps the image, and makes no volume."""
    response = await service.call("POST", "/api/v1/cache/fetch", json={"image_url": URL, "image_type": "raw"})
    body = await held(response, "JobAccepted", 202)
    assert body.keys() == {"job_id"}
    assert (await service.ended(body["job_id"]))["status"] == "completed"
    assert not list((service.folder / "volumes").glob("[!.]*"))
    assert (await images(service))["count"] == 1


async def test_fetch_with_checksum(service):
    wrong = {"image_url": URL, "image_type": "raw", "checksum": OTHER}
    body = await (await service.call("POST", "/api/v1/cache/fetch", json=wrong)).get_json()
    assert (await service.ended(body["job_id"]))["status"] == "failed"
    assert (await images(service))["images"] == []


@pytest.mark.parametrize("body", [{}, {"checksum": OTHER}])
async def test_fetch_without_url(service, body):
    response = await service.call("POST", "/api/v1/cache/fetch", json=body)
    await refused(response, 400, "invalid request", "^image_url is required$")


async def test_images(service):
    await service.done()
    body = await images(service)
    assert (body["count"], body["offset"], body["limit"]) == (1, 0, 100)
    (image,) = body["images"]
    assert (image["checksum"], image["digest"]) == (DIGEST, f"sha256:{DIGEST}")
    assert (image["size"], image["url"], image["format"], image["pinned"]) == (len(IMAGE), URL, "raw", False)
    assert image.keys() >= {"path", "virtual_size", "last_used_at"}
    assert await trio.Path(image["path"]).read_bytes() == IMAGE
    body = await images(service, "?offset=1&limit=5")
    assert body == {"images": [], "count": 1, "offset": 1, "limit": 5}


@pytest.mark.parametrize("checksum", [DIGEST, f"sha256:{DIGEST}"])
async def test_change_of_an_image(service, checksum):
    """Pin, unpin and remove it; it is unknown afterwards."""
    await service.done()
    path = f"/api/v1/cache/images/{checksum}"
    for method, pinned in (("PUT", True), ("DELETE", False)):
        assert (await service.call(method, f"{path}/pin")).status_code == 200
        assert (await images(service))["images"][0]["pinned"] is pinned
    await service.call("PUT", f"{path}/pin")
    pruned = await held(await service.call("POST", "/api/v1/cache/prune"), "CachePruned")
    assert pruned["removed"] == []
    assert (await service.call("DELETE", path)).status_code == 200
    await refused(await service.call("DELETE", path), 404, "not found", ".")
    await refused(await service.call("PUT", f"{path}/pin"), 404, "not found", ".")


async def test_remove_image_that_a_job_uses(service):
    await service.done()
    service.converter.steps.hang_at = "flush"
    job_id = (await (await service.submit(job("web-02"))).get_json())["job_id"]
    await service.converter.steps.reached.wait()
    await refused(await service.call("DELETE", f"/api/v1/cache/images/{DIGEST}"), 409, "conflict", ".")
    await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")


# --- volumes ---


async def test_volumes(service):
    """Only what the service made and still finds."""
    (service.folder / "volumes" / "foreign").write_bytes(b"x")
    done, _ = await service.done(), await service.done(job("gone"))
    (service.folder / "volumes" / "gone").unlink()
    body = await held(await service.call("GET", "/api/v1/volumes"), "VolumeList")
    (volume,) = body["volumes"]
    assert (volume["name"], volume["target"], volume["size_bytes"]) == ("web-01", "fake", 2**30)
    assert (volume["image_url"], volume["checksum"], volume["job_id"]) == (URL, DIGEST, done["job_id"])
    assert "created_at" in volume


@pytest.mark.parametrize(
    ("method", "tail", "body"), [("DELETE", "", None), ("POST", "/resize", {"volume_size_gb": 2})], ids=str
)
async def test_change_of_a_volume(service, method, tail, body):
    """Unknown or not ours is 404, in use or under a job 409, else 200."""
    (service.folder / "volumes" / "foreign").write_bytes(b"x")

    async def change(name="web-01", target="fake"):
        return await service.call(method, f"/api/v1/volumes/{target}/{name}{tail}", json=body)

    for unknown in (await change(), await change("foreign"), await change(target="nowhere")):
        await refused(unknown, 404, "not found", ".")
    await service.done()
    service.target.in_use.add("web-01")
    await refused(await change(), 409, "conflict", "in use")
    service.target.in_use.clear()
    service.source.steps.hang_at = "stat"
    job_id = (await (await service.submit()).get_json())["job_id"]
    await refused(await change(), 409, "conflict", job_id)
    await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")
    assert (await change()).status_code == 200


# --- host, health, metrics ---


@pytest.mark.parametrize("path", ["targets", "sources", "whoami"])
async def test_host(idle, path):
    assert (await idle.call("GET", f"/api/v1/{path}", role="viewer")).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez"])
async def test_health(tmp_path, path):
    """Degraded while more than two jobs are pending or running, or as many as configured."""
    for above, settings in ((2, {}), (0, {"server": ServerSettings(degraded_above=0)})):
        async with running(tmp_path / str(above), work=False, **settings) as service:
            for number in range(above + 1):
                body = await held(await service.call("GET", path, role=None), "Health")
                assert (body["status"], body.keys()) == ("healthy", {"status", "timestamp", "version", "uptime"})
                assert re.fullmatch(r"(\d+h)?(\d+m)?\d+s", body["uptime"])
                await service.submit(job(f"v{number}"))
            assert (await (await service.call("GET", path, role=None)).get_json())["status"] == "degraded"


async def test_readiness(service):
    """503 with reasons while a part does not answer, and while draining."""
    assert (await service.call("GET", "/readyz", role=None)).status_code == 200
    await service.services.supervisor.drain()
    body = await (await service.call("GET", "/readyz", role=None)).get_json()
    assert body["code"] == 503
    assert body["reasons"]


async def test_metrics(service):
    await service.done()
    await service.done(job(checksum=OTHER))
    response = await service.call("GET", "/metrics", role=None)
    assert response.content_type.startswith("text/plain")
    text = await response.get_data(as_text=True)
    for status, count in (("started", 2), ("completed", 1), ("failed", 1), ("cancelled", 0)):
        assert f'{PREFIX}jobs_total{{status="{status}"}} {count}.0\n' in text
    assert f"{PREFIX}active_jobs 0.0\n" in text
    labels = 'endpoint="/api/v1/jobs",method="POST",status="202"'
    assert f"{PREFIX}requests_total{{{labels}}} 2.0\n" in text
    assert 'endpoint="/api/v1/jobs/{job_id}"' in text
    assert "web-01" not in text
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert names >= {
        *(f"{PREFIX}{name}" for name in (
            "request_duration_seconds", "job_duration_seconds", "downloaded_bytes_total", "written_bytes_total",
            "cache_lookups_total", "cache_size_bytes", "cache_evictions_total", "volumes_provisioned_total",
            "queue_depth", "target_free_bytes", "build_info",
        )),
        "process_cpu_seconds_total", "python_info", "python_gc_objects_collected_total",
    }  # fmt: skip


# --- errors ---


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/nowhere", 404),
        ("PATCH", "/api/v1/jobs", 405),
        ("POST", "/health", 405),
        ("POST", "/api/v1/cache/images", 405),
    ],
)
async def test_unknown_routes_and_methods(service, method, path, status):
    body = await held(await service.call(method, path), "ErrorResponse", status)
    assert body.keys() == {"error", "message", "code"}
    assert body["code"] == status


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/cache/fetch", "/api/v1/volumes/fake/web-01/resize"])
async def test_bodies(idle, path):
    """Bad JSON is 400, another type 415, over 64 KiB 413."""
    kind = {"Content-Type": "application/json"}
    await refused(await idle.call("POST", path, data=b"{", headers=kind), 400, "invalid request", ".")
    await refused(await idle.call("POST", path, data=b"[]", headers=kind), 400, "invalid request", ".")
    await refused(await idle.call("POST", path, data=b"{}"), 415, "unsupported media type", ".")
    exactly = b"{}".ljust(64 * 1024)
    await refused(await idle.call("POST", path, data=exactly, headers=kind), 400, "invalid request", "is required")
    await refused(await idle.call("POST", path, data=exactly + b" ", headers=kind), 413, "payload too large", ".")


async def test_internal_error(service):
    """It names its request id and leaks nothing else."""
    service.target.steps.fail_at["remove"] = RuntimeError("s3cret")
    response = await service.call("DELETE", "/api/v1/volumes/fake/web-01")
    body = await refused(response, 500, "internal error", UUID)
    assert response.headers["X-Request-ID"] in body["message"]
    assert "s3cret" not in body["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/v1/targets"), ("DELETE", "/api/v1/volumes/fake/web-01"), ("POST", "/api/v1/cache/prune")],
)
async def test_unknown_query(service, method, path):
    await refused(await service.call(method, f"{path}?verbose=1"), 400, "invalid request", "'verbose'")
