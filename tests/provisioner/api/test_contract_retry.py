"""Tests of submitting the request of an ended job again."""

from __future__ import annotations

import msgspec
import pytest

from provisioner.config.access import Limits
from provisioner.contracts.testing import FakeImage
from tests.provisioner.api.conftest import ABSENT, DIGEST, IMAGE, SUMS, URL, job
from tests.provisioner.api.document import held, refused


async def retry(service, job_id, **more):
    return await service.call("POST", f"/api/v1/jobs/{job_id}/retry", **more)


async def test_retry_ended_job(service):
    """A new job with the same request; what has changed since counts."""
    asked = job(image_url=ABSENT, checksum=DIGEST, priority=3, correlation_id="c")
    old = await service.done(asked)
    assert old["status"] == "failed"
    service.source.images[ABSENT] = FakeImage(IMAGE)
    answer = await retry(service, old["job_id"])
    new_id = (await held(answer, "JobAccepted", 202))["job_id"]
    assert answer.headers["Location"] == f"/api/v1/jobs/{new_id}"
    new = await service.ended(new_id)
    assert (new["status"], new["correlation_id"]) == ("completed", "c")
    assert new["job_id"] != old["job_id"]
    assert new["request"] == old["request"]


async def test_retry_fetch(service):
    sent = await service.call("POST", "/api/v1/cache/fetch", json={"image_url": URL, "image_type": "raw"})
    old = await service.ended((await sent.get_json())["job_id"])
    new = await service.ended((await held(await retry(service, old["job_id"]), "JobAccepted", 202))["job_id"])
    assert (new["status"], new["request"]) == ("completed", old["request"])


async def test_retry_with_idempotency_key(service):
    old = await service.done()
    key = {"Idempotency-Key": "k"}
    answers = [await held(await retry(service, old["job_id"], headers=key), "JobAccepted", 202) for _ in range(2)]
    assert answers[1] == {**answers[0], "repeated": True}


async def test_retry_active_job(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    await refused(await retry(idle, job_id), 409, "conflict", f"^job {job_id} is still pending; it can be retried")


async def test_retry_unknown_job(idle):
    await refused(await retry(idle, "4f1c7e0a-93b5-4d62-8a0e-5b7d2c9e6f18"), 404, "job not found", "not found")


async def test_retry_needs_role(service):
    old = await service.done()
    await refused(await retry(service, old["job_id"], role="viewer"), 403, "forbidden", "operator")


@pytest.mark.parametrize(
    ("limits", "words"), [({"volumes": ["ci-*"]}, "web-01"), ({"targets": ["x"]}, "fake"), ({"sources": ["x"]}, "http")]
)
async def test_retry_within_limits_of_caller(service, limits, words):
    """The limits of the one who retries apply, not those of the first submitter."""
    old = await service.done()
    token = service.tokens.create("limited", "operator", limits=Limits(**limits))
    answer = await retry(service, old["job_id"], role=None, headers={"X-API-Token": token})
    await refused(answer, 403, "forbidden", words)


async def test_retry_of_secret_url_by_another(service):
    """The query of a url may be a signature, which only its submitter may use and see."""
    url = f"{URL}?signature=secret"
    service.source.images |= {url: FakeImage(IMAGE), f"{URL}.sha256": FakeImage(SUMS)}
    old = await service.done(job(image_url=url, checksum=DIGEST))
    body = await refused(await retry(service, old["job_id"], role="operator"), 403, "forbidden", "submitter")
    assert "secret" not in body["message"]
    assert (await retry(service, old["job_id"])).status_code == 202


async def test_retry_job_stored_before(service):
    """A job of an older version has no request of its own; its spec is used."""
    store = service.services.store
    old = await store.get((await service.done())["job_id"])
    await store.put(msgspec.structs.replace(old, request=None))
    new = await service.ended((await held(await retry(service, old.job_id), "JobAccepted", 202))["job_id"])
    assert (new["status"], new["volume"]["target"]) == ("completed", "fake")
