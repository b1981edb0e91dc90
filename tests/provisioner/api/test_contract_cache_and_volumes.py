"""Tests of the routes for cached images and volumes."""

from __future__ import annotations

import msgspec
import pytest
import trio

from provisioner.config import PrewarmSettings
from provisioner.config.access import Limits
from tests.provisioner.api.conftest import DIGEST, IMAGE, URL, job, running
from tests.provisioner.api.document import held, refused


async def test_fetch_and_remove_image(service):
    response = await service.call("POST", "/api/v1/cache/fetch", json={"image_url": URL, "image_type": "raw"})
    accepted = await held(response, "JobAccepted", 202)
    done = await service.ended(accepted["job_id"])
    assert done["status"] == "completed"
    assert "volume" not in done
    body = await held(await service.call("GET", "/api/v1/cache/images"), "CachedImageList")
    (image,) = body["images"]
    assert (body["count"], body["offset"], body["limit"]) == (1, 0, 100)
    assert image.keys() >= {"path", "size", "checksum", "url", "format", "virtual_size", "last_used_at", "pinned"}
    assert (image["size"], image["url"]) == (len(IMAGE), URL)
    assert (image["checksum"], image["digest"]) == (DIGEST, f"sha256:{DIGEST}")
    assert (await held(await service.call("GET", "/api/v1/cache/images?offset=1"), "CachedImageList"))["images"] == []
    removed = await service.call("DELETE", f"/api/v1/cache/images/sha256:{DIGEST.upper()}")
    assert await held(removed, "CachedImageRemoved") == {
        "status": "removed",
        "checksum": DIGEST,
        "digest": f"sha256:{DIGEST}",
    }
    await refused(await service.call("DELETE", f"/api/v1/cache/images/sha256:{DIGEST}"), 404, "not found", ".")
    assert not await trio.Path(image["path"]).exists()


@pytest.mark.parametrize(
    ("prefix", "found"),
    [(DIGEST[:8], 1), (f"sha256:{DIGEST[:20].upper()}", 1), (DIGEST, 1), ("0" * 8, 0)],
)
async def test_list_images_with_prefix(service, prefix, found):
    await service.done()
    body = await held(await service.call("GET", f"/api/v1/cache/images?checksum_prefix={prefix}"), "CachedImageList")
    assert (len(body["images"]), body["count"]) == (found, found)


@pytest.mark.parametrize("prefix", ["", DIGEST[:7], "sha256:", "md5:12345678", "1234567g", "0" * 65])
async def test_list_images_with_invalid_prefix(service, prefix):
    response = await service.call("GET", f"/api/v1/cache/images?checksum_prefix={prefix}")
    await refused(response, 400, "invalid request", "^checksum_prefix must be the first 8 to 64 digits of a SHA-256")


async def test_limited_caller_and_image_of_unknown_origin(service):
    """A cache whose index was rebuilt knows no urls: no limit covers such an image."""
    await service.done()
    (entry,) = service.services.cache.entries()
    service.services.cache._catalog.add(msgspec.structs.replace(entry, url=""))
    limited = {"X-API-Token": service.tokens.create("ci", "operator", limits=Limits(sources=["http"]))}
    for method, path in (("PUT", "pin"), ("POST", "verify")):
        response = await service.call(method, f"/api/v1/cache/images/{DIGEST}/{path}", role=None, headers=limited)
        await refused(response, 403, "forbidden", "ci may not use images from an unknown source; allowed: http")


async def test_fetch_without_url(service):
    response = await service.call("POST", "/api/v1/cache/fetch", json={})
    body = await refused(response, 400, "invalid request", ".")
    assert body["message"] == "image_url is required"


async def test_remove_image_in_use(service):
    service.converter.steps.hang_at = "flush"
    job_id = (await (await service.submit()).get_json())["job_id"]
    await service.converter.steps.reached.wait()
    with trio.fail_after(60):
        while not (await (await service.call("GET", "/api/v1/cache/images")).get_json())["count"]:  # noqa: ASYNC110
            await trio.sleep(0.005)  # there is no event for the image's publication
    await refused(await service.call("DELETE", f"/api/v1/cache/images/sha256:{DIGEST}"), 409, "conflict", ".")
    pruned = await held(await service.call("POST", "/api/v1/cache/prune"), "CachePruned")
    assert pruned == {"removed": [], "freed_bytes": 0}
    await service.call("POST", f"/api/v1/jobs/{job_id}/cancel")


async def test_prune(service):
    await service.done()
    body = await held(await service.call("POST", "/api/v1/cache/prune"), "CachePruned")
    assert body == {"removed": [f"sha256:{DIGEST}"], "freed_bytes": len(IMAGE)}


async def test_prewarmed_image_is_pinned(folder):
    """Also after a client has removed its own pin."""
    async with running(folder, prewarm=[PrewarmSettings(url=URL, image_type="raw")]) as service:
        await service.done()
        unpinned = await service.call("DELETE", f"/api/v1/cache/images/sha256:{DIGEST}/pin")
        assert unpinned.status_code == 200
        (image,) = (await held(await service.call("GET", "/api/v1/cache/images"), "CachedImageList"))["images"]
        assert image["pinned"] is True
        pruned = await held(await service.call("POST", "/api/v1/cache/prune"), "CachePruned")
        assert pruned == {"removed": [], "freed_bytes": 0}


@pytest.mark.parametrize("checksum", ["x", "sha256:12", "%00"])
async def test_remove_invalid_checksum(service, checksum):
    await refused(
        await service.call("DELETE", f"/api/v1/cache/images/{checksum}"), 400, "invalid request", "^checksum must be"
    )


@pytest.mark.parametrize("digest", [DIGEST, DIGEST.upper(), f"sha256:{DIGEST}", f"SHA256:{DIGEST}"])
async def test_digest_with_and_without_algorithm(service, digest):
    assert (await service.done(job(checksum=digest)))["status"] == "completed"
    assert (await service.call("PUT", f"/api/v1/cache/images/{digest}/pin")).status_code == 200


@pytest.mark.parametrize(("weak", "name"), [("md5:" + 32 * "0", "md5"), (32 * "0", "md5"), (40 * "0", "sha1")])
async def test_weak_checksum(service, weak, name):
    for response in (
        await service.submit(job(checksum=weak)),
        await service.call("DELETE", f"/api/v1/cache/images/{weak}"),
    ):
        message = f"^checksum: {name} is too weak; give the image's sha256 or sha512$"
        await refused(response, 400, "invalid request", message)


async def test_volumes(service):
    made = await service.done()
    body = await held(await service.call("GET", "/api/v1/volumes"), "VolumeList")
    (volume,) = body["volumes"]
    assert (volume["name"], volume["target"], volume["size_bytes"]) == ("web-01", "fake", 2**30)
    assert (volume["job_id"], volume["image_url"]) == (made["job_id"], URL)
    assert (volume["checksum"], volume["digest"]) == (DIGEST, f"sha256:{DIGEST}")
    removed = await service.call("DELETE", "/api/v1/volumes/fake/web-01")
    assert await held(removed, "VolumeRemoved") == {"status": "removed", "target": "fake", "name": "web-01"}
    await refused(await service.call("DELETE", "/api/v1/volumes/fake/web-01"), 404, "not found", "web-01")
    await refused(await service.call("DELETE", "/api/v1/volumes/nowhere/web-01"), 404, "not found", "nowhere")


async def test_remove_volume_in_use(service):
    await service.done()
    service.target.in_use.add("web-01")
    await refused(await service.call("DELETE", "/api/v1/volumes/fake/web-01"), 409, "conflict", "web-01")


async def test_remove_volume_with_active_job(idle):
    job_id = (await (await idle.submit()).get_json())["job_id"]
    await refused(await idle.call("DELETE", "/api/v1/volumes/fake/web-01"), 409, "conflict", job_id)
