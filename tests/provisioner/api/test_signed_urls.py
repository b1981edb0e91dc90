"""Tests that queries of urls, which may be signatures, are shown only to the submitter."""

from __future__ import annotations

import hashlib

from provisioner.contracts.testing import FakeImage
from tests.provisioner.api.conftest import IMAGE, URL, job

SIGNED = f"{URL}?X-Amz-Signature=c0ffee"


async def test_url_query_is_shown_to_submitter(service):
    service.source.images[SIGNED] = FakeImage(IMAGE)
    digest = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"
    answer = await service.submit(job(image_url=SIGNED, checksum=digest), role="operator")
    job_id = (await answer.get_json())["job_id"]
    assert (await service.ended(job_id, role="operator"))["status"] == "completed"
    for role, shown in (("operator", SIGNED), ("viewer", URL), ("admin", URL)):
        for path in (f"/api/v1/jobs/{job_id}", "/api/v1/jobs"):
            body = await (await service.call("GET", path, role=role)).get_json()
            assert body.get("jobs", [body])[0]["image_url"] == shown
        for path in ("/api/v1/cache/images", "/api/v1/volumes"):
            assert "c0ffee" not in await (await service.call("GET", path, role=role)).get_data(as_text=True)
        assert URL in await (await service.call("GET", "/api/v1/cache/images", role=role)).get_data(as_text=True)
