"""Tests of a caller's limits in addition to its role: volumes, targets, sources, jobs, and jobs it may cancel."""

from __future__ import annotations

import hashlib

import pytest

from provisioner.auth.authenticator import Principal
from provisioner.auth.authorization import check_source, check_volume
from provisioner.config import AuthSettings, Limits
from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import ForbiddenError
from tests.provisioner.api.conftest import IMAGE, URL, job, running

OTHER = "http://images.example/other/disk.raw"


def limited(**limits):
    return Principal("ci", "admin", "token", Limits(**limits))


@pytest.mark.parametrize(
    ("limits", "target", "volume", "allowed"),
    [
        ({}, "any", "any", True),
        ({"volumes": ["ci-*"]}, "any", "ci-1", True),
        ({"volumes": ["ci-*"]}, "any", "ci-", True),
        ({"volumes": ["ci-*"]}, "any", "CI-1", False),
        ({"volumes": ["ci-*"]}, "any", "web-ci-1", False),
        ({"volumes": ["a", "t-?"]}, "any", "t-1", True),
        ({"volumes": ["a", "t-?"]}, "any", "t-12", False),
        ({"targets": ["fast"]}, "fast", "any", True),
        ({"targets": ["fast"]}, "faster", "any", False),
        ({"targets": ["*"]}, "fast", "any", False),
        ({"targets": ["fast"], "volumes": ["ci-*"]}, "fast", "web", False),
    ],
)
def test_check_volume(limits, target, volume, allowed):
    if allowed:
        check_volume(limited(**limits), target, volume)
    else:
        with pytest.raises(ForbiddenError, match=r"ci may not use .*; allowed: "):
            check_volume(limited(**limits), target, volume)


@pytest.mark.parametrize(
    ("sources", "url", "allowed"),
    [
        (None, "https://x/a", True),
        (["images"], "https://x/a", True),  # the name of the source
        (["other"], "https://x/a", False),
        (["https://x/pub/"], "https://x/pub/a", True),
        (["https://x/pub"], "https://x/public", False),
        (["https://x/pub/"], "https://x/a", False),
        (["https://x/pub/"], "http://x/pub/a", False),
        (["https://x/pub/"], "https://x:444/pub/a", False),
        (["https://x/pub/"], "https://X/pub/a", True),
        (["other", "https://*.x/"], "https://a.x/b", True),
    ],
)
def test_check_source(sources, url, allowed):
    if allowed:
        check_source(limited(sources=sources), ImageUrl.parse(url), "images")
    else:
        with pytest.raises(ForbiddenError, match="images from http"):
            check_source(limited(sources=sources), ImageUrl.parse(url), "images")


def token(service, name, role="operator", **limits):
    service.token[name] = service.tokens.create(name, role, limits=Limits(**limits))
    return name


async def forbidden(response, words):
    body = await response.get_json()
    assert (response.status_code, body["error"]) == (403, "forbidden"), body
    assert words in body["message"]


async def test_job_outside_limits(idle):
    ci = token(idle, "ci", volumes=["ci-*"])
    await forbidden(await idle.submit(job("web-01"), role=ci), "ci may not use a volume 'web-01'; allowed: ci-*")
    other = token(idle, "other", targets=["slow"])
    await forbidden(await idle.submit(role=other), "the target 'fake'; allowed: slow")  # also as the default
    await forbidden(await idle.submit(job(target="fake"), role=other), "the target 'fake'; allowed: slow")
    assert (await (await idle.call("GET", "/api/v1/jobs")).get_json())["count"] == 0
    assert (await idle.submit(job("ci-1"), role=ci)).status_code == 202


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/cache/fetch"])
async def test_source_outside_limits(idle, path):
    pub = token(idle, "pub", sources=["http://images.example/pub/"])
    body = job() if path.endswith("jobs") else {"image_url": URL, "image_type": "raw"}
    await forbidden(await idle.call("POST", path, json=body, role=pub), "may not use images from http://images.example")
    named = token(idle, "named", sources=["http"])
    assert (await idle.call("POST", path, json=body, role=named)).status_code == 202


async def test_url_of_no_source_is_invalid(idle):
    pub = token(idle, "pub", sources=["http://elsewhere.example/"])
    answer = await idle.submit(job(image_url="http://elsewhere.example/x"), role=pub)
    assert answer.status_code == 400


async def test_digest_of_image_from_other_source(tmp_path):
    async with running(tmp_path) as service:
        await service.done(job(checksum=f"sha512:{hashlib.sha512(IMAGE).hexdigest()}"))
        pub = token(service, "pub", "admin", sources=["http://images.example/other/"])
        for kind in ("sha256", "sha512"):
            digest = f"{kind}:{hashlib.new(kind, IMAGE).hexdigest()}"
            await forbidden(await service.submit(job("x", image_url=OTHER, checksum=digest), role=pub), "images from")
        digest = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"
        for method, path in (
            ("DELETE", f"/api/v1/cache/images/{digest}"),
            ("PUT", f"/api/v1/cache/images/{digest}/pin"),
            ("DELETE", f"/api/v1/cache/images/{digest}/pin"),
            ("POST", f"/api/v1/cache/images/{digest}/verify"),
        ):
            await forbidden(await service.call(method, path, role=pub), "images from")
        await forbidden(await service.call("POST", "/api/v1/cache/prune", role=pub), "all cached images")
        assert (await (await service.call("GET", "/api/v1/cache/images", role=pub)).get_json())["count"] == 1
        own = token(service, "own", "admin", sources=["http"])
        assert (await service.call("POST", f"/api/v1/cache/images/{digest}/verify", role=own)).status_code == 200


async def test_job_keeps_limits_of_its_caller(idle):
    """The job looks for its image later, when the cache may contain the image from another source."""
    pub = token(idle, "pub", sources=["http"])
    for role, limits in ((pub, ("http",)), ("operator", None)):
        job_id = (await (await idle.submit(job(f"v-{role}"), role=role)).get_json())["job_id"]
        found, _ = await idle.services.supervisor.find(job_id)
        assert found.spec.allowed_sources == limits
        body = await (await idle.call("GET", f"/api/v1/jobs/{job_id}")).get_data(as_text=True)
        assert "allowed_sources" not in body


async def test_remove_volume_outside_limits(tmp_path):
    async with running(tmp_path) as service:
        await service.done()
        ci = token(service, "ci", "admin", volumes=["ci-*"])
        await forbidden(await service.call("DELETE", "/api/v1/volumes/fake/web-01", role=ci), "a volume 'web-01'")
        slow = token(service, "slow", "admin", targets=["slow"])
        await forbidden(await service.call("DELETE", "/api/v1/volumes/fake/web-01", role=slow), "the target 'fake'")
        assert (service.folder / "volumes" / "web-01").exists()
        web = token(service, "web", "admin", volumes=["web-*"], targets=["fake"])
        assert (await service.call("DELETE", "/api/v1/volumes/fake/web-01", role=web)).status_code == 200


async def test_resize_volume_outside_limits(tmp_path):
    async with running(tmp_path) as service:
        await service.done()
        path, body = "/api/v1/volumes/fake/web-01/resize", {"volume_size_gb": 2}
        ci = token(service, "ci", volumes=["ci-*"])
        await forbidden(await service.call("POST", path, role=ci, json=body), "a volume 'web-01'")
        slow = token(service, "slow", targets=["slow"])
        await forbidden(await service.call("POST", path, role=slow, json=body), "the target 'fake'")
        web = token(service, "web", volumes=["web-*"], targets=["fake"])
        assert (await service.call("POST", path, role=web, json=body)).status_code == 200


async def test_cancel_by_limited_caller(idle):
    one, two = token(idle, "one", volumes=["*"]), token(idle, "two", volumes=["*"])
    job_id = (await (await idle.submit(role=one)).get_json())["job_id"]
    await forbidden(await idle.call("POST", f"/api/v1/jobs/{job_id}/cancel", role=two), "its own jobs only")
    assert (await idle.call("POST", f"/api/v1/jobs/{job_id}/cancel", role=one)).status_code == 200
    job_id = (await (await idle.submit(role=one)).get_json())["job_id"]
    assert (await idle.call("POST", f"/api/v1/jobs/{job_id}/cancel", role="operator")).status_code == 200
    assert (await idle.call("POST", "/api/v1/jobs/x/cancel", role=two)).status_code == 404


async def test_max_jobs_per_caller(idle):
    ci = token(idle, "ci", max_jobs=2)
    ids = [(await (await idle.submit(job(f"v-{n}"), role=ci)).get_json())["job_id"] for n in range(2)]
    third = await idle.submit(job("v-2"), role=ci)
    assert third.status_code == 429
    assert int(third.headers["Retry-After"]) >= 1
    assert "you have 2 jobs pending or running" in (await third.get_json())["message"]
    assert (await idle.submit(job("w"), role="operator")).status_code == 202
    assert (await idle.call("POST", f"/api/v1/jobs/{ids[0]}/cancel", role=ci)).status_code == 200
    assert (await idle.submit(job("v-2"), role=ci)).status_code == 202


async def test_max_jobs_ignores_idempotent_repeat(idle):
    ci, key = token(idle, "ci", max_jobs=1), {"Idempotency-Key": "k"}
    first = await (await idle.submit(role=ci, headers=key)).get_json()
    assert await (await idle.submit(role=ci, headers=key)).get_json() == {**first, "repeated": True}


async def test_max_jobs_default_and_own(tmp_path):
    async with running(tmp_path, work=False, auth=AuthSettings(max_jobs=1)) as service:
        more = token(service, "more", max_jobs=2)
        assert (await service.submit(job("a"), role="operator")).status_code == 202
        assert (await service.submit(job("b"), role="operator")).status_code == 429
        assert [(await service.submit(job(name), role=more)).status_code for name in ("c", "d", "e")] == [202, 202, 429]
