"""Tests of requests that name an image, and of the list of named images."""

from __future__ import annotations

import pytest

from provisioner.config import NamedImage
from provisioner.config.access import Limits
from provisioner.contracts.testing import FakeImage
from tests.contents import first_bytes
from tests.provisioner.api.conftest import DIGEST, IMAGE, running
from tests.provisioner.api.document import held, refused

FOLDER = "http://images.example:8080/debian/"
NEWEST = f"{FOLDER}12.2/debian-12.2.raw"
IMAGES = {
    "debian-12": NamedImage(url=FOLDER + "{version}/debian-{version}.raw", image_type="raw", description="Debian 12"),
    "pinned": NamedImage(url=NEWEST, image_type="raw", checksum=DIGEST),
}
NAMED = {"image": "debian-12", "volume_name": "web-01", "volume_size_gb": 1}


@pytest.fixture
async def service(folder):
    async with running(folder, images=IMAGES) as made:
        made.source.images |= {
            FOLDER: FakeImage(b'<a href="12.1/">12.1/</a><a href="12.2/">12.2/</a>'),
            NEWEST: FakeImage(IMAGE),
            f"{NEWEST}.sha256": FakeImage(f"{DIGEST}  debian-12.2.raw\n".encode()),
        }
        yield made


async def test_job_pins_the_newest_image(service):
    done = await service.done(NAMED)
    assert (done["status"], done["image_url"]) == ("completed", NEWEST)
    assert done["request"] == {"image_type": "raw", "priority": 0, **NAMED, "image_url": NEWEST}
    assert first_bytes(service.folder / "volumes" / "web-01", len(IMAGE)) == IMAGE


async def test_retry_has_the_pinned_image(service):
    done = await service.done(NAMED)
    service.source.images[FOLDER] = FakeImage(b'<a href="12.3/">12.3/</a>')
    again = await (await service.call("POST", f"/api/v1/jobs/{done['job_id']}/retry")).get_json()
    assert (await service.ended(again["job_id"]))["image_url"] == NEWEST


async def test_checksum_of_the_named_image_is_required(service):
    service.source.images[NEWEST] = FakeImage(b"tampered")
    done = await service.done({**NAMED, "image": "pinned"})
    assert done["status"] == "failed"
    assert done["request"]["checksum"] == f"sha256:{DIGEST}"


async def test_request_overrides_type_and_checksum(service):
    done = await service.done({**NAMED, "image": "pinned", "image_type": "qcow2", "checksum": "0" * 64})
    assert (done["request"]["image_type"], done["request"]["checksum"]) == ("qcow2", "0" * 64)


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/plan", "/api/v1/cache/fetch"])
async def test_unknown_name(service, path):
    body = {"image": "debian"} if path.endswith("fetch") else {**NAMED, "image": "debian"}
    answer = await service.call("POST", path, json=body)
    await refused(answer, 400, "invalid request", "no image named 'debian'; there are: debian-12, pinned")


async def test_name_and_url(service):
    await refused(await service.submit({**NAMED, "image_url": NEWEST}), 400, "invalid request", "not both")


async def test_publisher_does_not_answer(service):
    del service.source.images[FOLDER]
    answer = await service.submit(NAMED)
    await refused(answer, 502, "source error", "the newest image 'debian-12' could not be determined")
    assert (await (await service.call("GET", "/api/v1/jobs")).get_json())["count"] == 0


async def test_cached_image_serves_while_the_publisher_does_not_answer(service):
    await service.done(NAMED)
    service.services.images._known.clear()
    del service.source.images[FOLDER]
    assert (await service.done({**NAMED, "volume_name": "web-02"}))["cache_hit"] is True


async def test_dry_run_shows_the_newest_image(service):
    plan = await held(await service.call("POST", "/api/v1/jobs?dry_run=true", json=NAMED), "Plan")
    assert plan["image_url"] == NEWEST


async def test_pull(service):
    answer = await service.call("POST", "/api/v1/cache/fetch", json={"image": "debian-12"})
    assert (await service.ended((await answer.get_json())["job_id"]))["status"] == "completed"


async def test_list_and_resolve(service):
    listed = await held(await service.call("GET", "/api/v1/images", role="viewer"), "NamedImageList")
    assert [image["name"] for image in listed["images"]] == ["debian-12", "pinned"]
    found = await held(await service.call("GET", "/api/v1/images/debian-12", role="viewer"), "ResolvedImage")
    assert (found["image_url"], found["version"]) == (NEWEST, "12.2")
    await refused(await service.call("GET", "/api/v1/images/debian"), 404, "not found", "no image named")


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
async def test_limits_apply_before_the_publisher_is_asked(service, query):
    token = service.tokens.create("ci", "operator", limits=Limits(sources=["elsewhere"]))
    sent = {"X-API-Token": token}
    answer = await service.call("POST", f"/api/v1/jobs{query}", role=None, headers=sent, json=NAMED)
    await refused(answer, 403, "forbidden", "may not use images from")
    assert service.source.opens == []
