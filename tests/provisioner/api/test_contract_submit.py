"""Tests of accepted and rejected submits."""

from __future__ import annotations

import re

import pytest

from provisioner.config import JobSettings
from provisioner.contracts import GIB
from tests.contents import first_bytes
from tests.provisioner.api.conftest import DIGEST, IMAGE, URL, job, running
from tests.provisioner.api.document import UUID, held, refused


async def test_submit_accepted(service):
    response = await service.submit(job(correlation_id="deploy-4711", target="fake", checksum=f"sha256:{DIGEST}"))
    body = await held(response, "JobAccepted", 202)
    assert body.keys() == {"job_id"}
    assert re.fullmatch(UUID, body["job_id"])
    assert response.headers["Location"] == f"/api/v1/jobs/{body['job_id']}"
    assert (await service.ended(body["job_id"]))["status"] == "completed"
    assert first_bytes(service.folder / "volumes" / "web-01", len(IMAGE)) == IMAGE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"volume_name": "a", "volume_size_gb": 1}, "^image_url is required$"),
        ({"image_url": URL, "volume_size_gb": 1}, "^volume_name is required$"),
        (job(volume_size_gb=0), "^volume_size_gb must be a whole number of at least 1$"),
        (job(volume_size_gb=2**40), "^volume_size_gb must be a whole number of at most 8589934591$"),
        (job(volume_size_gb=1.5), "^volume_size_gb must be a whole number, not a fraction$"),
        (job(volume_size_gb="1"), "^volume_size_gb must be a whole number, not text$"),
        (job(volume_size_gb=True), "^volume_size_gb must be a whole number, not true or false$"),
        (job(volume_size_gb=10**400), "."),
        (job(image_url=""), "^image_url is required$"),
        (job(image_url=None), "^image_url is required$"),
        (job(image_url="http://elsewhere.example/x"), "nothing was fetched"),
        (job(image_url="file:///etc/passwd"), "image_url|nothing was fetched"),
        (job(image_url="http://u:p@images.example/x"), "user name or password"),
        (job(image_url="http://images.example/a b"), "image_url"),
        (job(image_type="iso9660"), "image_type 'iso9660' is not known; there are: qcow2, raw"),
        (job(name="a/b"), "not a valid volume name"),
        (job(name="../x"), "not a valid volume name"),
        (job(name=""), "^volume_name must not be empty$"),
        (job(name="x" * 256), "^volume_name must be at most 255 characters$"),
        (job(target="nowhere"), "no block target 'nowhere' is configured; there are: fake"),
        (job(checksum="sha256:12"), "^checksum must be 64"),
        (job(checksum="md5:" + 32 * "0"), "^checksum: "),
        (job(priority=1001), "^priority must be a whole number of at most 1000$"),
        (job(correlation_id=7), "^correlation_id must be text, not a whole number$"),
        (job(cheksum="x"), "^unknown field 'cheksum'; allowed: image_url, image"),
    ],
)
async def test_submit_invalid_request(service, body, message):
    await refused(await service.submit(body), 400, "invalid request", message)
    assert service.source.opens == []
    assert service.source.steps.log == []
    assert (await (await service.call("GET", "/api/v1/jobs")).get_json())["count"] == 0


@pytest.mark.parametrize("blank", ["", None])
async def test_blank_optional_fields_are_absent(service, blank):
    names = ("correlation_id", "target", "checksum", "priority", "volume_size_gb")
    made = await service.done(job(**dict.fromkeys(names, blank)))
    assert made["status"] == "completed"
    assert "volume_size_gb" not in made["request"]
    assert made["volume"]["size_bytes"] == GIB  # the smallest that fits
    assert "correlation_id" not in made
    response = await service.submit({**job("web-02"), "image_type": blank})
    await held(response, "JobAccepted", 202)  # as qcow2, the default


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"\x00", b"{}{}", b"[" * 60000, b'{"image_url": "\\ud800"}']
)
@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/cache/fetch"])
async def test_submit_invalid_json(service, path, raw):
    response = await service.call("POST", path, data=raw, headers={"Content-Type": "application/json"})
    await refused(response, 400, "invalid request", ".")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json5", "x"])
async def test_submit_wrong_content_type(service, kind):
    headers = {"Content-Type": kind} if kind else {}
    response = await service.call("POST", "/api/v1/jobs", data=b"{}", headers=headers)
    await refused(response, 415, "unsupported media type", "application/json")


async def test_submit_json_with_charset(service):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    await refused(
        await service.call("POST", "/api/v1/jobs", data=b"{}", headers=headers),
        400,
        "invalid request",
        "volume_name is required",
    )


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/cache/fetch"])
async def test_submit_body_too_large(service, path):
    fits = await service.call("POST", path, data=b" " * 65536, headers={"Content-Type": "application/json"})
    assert fits.status_code == 400
    over = await service.call("POST", path, data=b" " * 65537, headers={"Content-Type": "application/json"})
    await refused(over, 413, "payload too large", "64 KiB")


async def test_submit_volume_with_active_job(idle):
    first = (await held(await idle.submit(), "JobAccepted", 202))["job_id"]
    await refused(await idle.submit(), 409, "conflict", first)
    await held(await idle.submit(job("web-02")), "JobAccepted", 202)


async def test_idempotency_key(idle):
    key = {"Idempotency-Key": "k-1"}
    first = await held(await idle.submit(headers=key), "JobAccepted", 202)
    assert await held(await idle.submit(headers=key), "JobAccepted", 202) == {**first, "repeated": True}
    await refused(await idle.submit(job("other"), headers=key), 409, "conflict", "Idempotency-Key")
    other_caller = await idle.submit(job("other"), headers=key, role="operator")
    assert await held(other_caller, "JobAccepted", 202) != first


async def test_idempotency_key_of_ended_job(service):
    key = {"Idempotency-Key": "k-1"}
    first = await held(await service.submit(headers=key), "JobAccepted", 202)
    await service.ended(first["job_id"])
    assert await held(await service.submit(headers=key), "JobAccepted", 202) == {**first, "repeated": True}


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\xe9"])
async def test_idempotency_key_invalid(service, key):
    await refused(await service.submit(headers={"Idempotency-Key": key}), 400, "invalid request", "Idempotency-Key")


async def test_submit_queue_full(folder):
    async with running(folder, work=False, jobs=JobSettings(max_queued=1)) as service:
        await held(await service.submit(), "JobAccepted", 202)
        response = await service.submit(job("web-02"))
        await refused(response, 429, "too many requests", "try again")
        assert int(response.headers["Retry-After"]) >= 1


async def test_submit_during_shutdown(service):
    await service.services.supervisor.drain()
    response = await service.submit()
    await refused(response, 503, "service unavailable", "stopping")
    assert int(response.headers["Retry-After"]) >= 1
    body = await held(await service.call("GET", "/readyz", role=None), "NotReady", 503)
    assert body["reasons"] == ["the service is shutting down"]
