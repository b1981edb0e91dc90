"""Tests that changes are rejected if a page of another site makes a browser send them with its client certificate."""

from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers

from provisioner.api.cross_site import check_cross_site, is_own_origin
from provisioner.contracts.errors import ForbiddenError, UnsupportedMediaTypeError
from tests.provisioner.api.conftest import job
from tests.provisioner.auth.test_roles import calls
from tests.provisioner.tls.test_peer_certificate import tls_harness


@pytest.fixture
async def tls(folder):
    async with tls_harness(folder) as made:
        made.service.services.notifier.feed.close()  # event streams end at once
        yield made


@pytest.fixture
async def admin(tls):
    async with tls.client(tls.ca.issue_cert("admin.example")) as client:
        yield client


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://127.0.0.1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_cross_site_change_is_rejected(tls, admin, headers):
    tls.service.services.notifier.feed.close()  # event streams end at once
    for method, path, _ in calls(tls.service.app):
        response = await admin.request(method, path, headers=headers)
        if method == "GET":
            assert response.status_code in {200, 400, 404}
        else:
            assert response.status_code == 403, (method, path)
            assert "another site" in response.json()["message"]


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "TEXT/Plain; charset=utf-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "text/plain; application/json"],
)  # fmt: skip
async def test_form_content_type_is_rejected(tls, admin, media_type):
    for method, path, _ in calls(tls.service.app):
        if method != "GET":
            response = await admin.request(method, path, headers={"Content-Type": media_type}, content=b"{}")
            assert response.status_code == 415, (method, path)


async def test_cross_site_prune_is_rejected(tls, admin):
    """A form's text/plain request with the browser's certificate, which once succeeded."""
    await tls.service.done()
    entries = tls.service.services.cache.entries()
    headers = {"Content-Type": "text/plain", "Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert (await admin.post("/api/v1/cache/prune", headers=headers, content=b"x")).status_code == 403
    assert (await admin.post("/api/v1/cache/prune", headers={"Content-Type": "text/plain"})).status_code == 415
    assert tls.service.services.cache.entries() == entries


async def test_clients_without_browser_headers(tls, admin):
    """As curl sends them: no Origin, no Sec-Fetch-Site, no content type without a body."""
    assert (await admin.post("/api/v1/jobs", json=job())).status_code == 202
    assert (await admin.post("/api/v1/cache/prune")).status_code == 200
    assert (await admin.delete("/api/v1/volumes/fake/absent")).status_code == 404


async def test_same_origin_change_is_allowed(tls, admin):
    for site in ("same-origin", "none"):
        headers = {"Origin": tls.url, "Sec-Fetch-Site": site}
        assert (await admin.post("/api/v1/cache/prune", headers=headers)).status_code == 200


@pytest.mark.parametrize("http2", [False, True])
async def test_same_origin_over_each_protocol(tls, http2):
    async with tls.client(tls.ca.issue_cert("admin.example"), http2=http2) as client:
        own = await client.post("/api/v1/cache/prune", headers={"Origin": tls.url})
        foreign = await client.post("/api/v1/cache/prune", headers={"Origin": "https://evil.example"})
        assert (own.status_code, foreign.status_code) == (200, 403)


async def test_no_cors_headers(tls, admin):
    """A preflight gets 405, and no response has a CORS header."""
    tls.service.services.notifier.feed.close()  # event streams end at once
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "DELETE"}
    for method, path, _ in calls(tls.service.app):
        for asked in ("OPTIONS", method):
            response = await admin.request(asked, path, headers=headers)
            assert asked != "OPTIONS" or response.status_code == 405
            assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("origin", "scheme", "host", "own"),
    [
        ("https://a.example:8080", "https", "a.example:8080", True),
        ("https://A.example:8080", "https", "a.EXAMPLE:8080", True),
        ("https://a.example", "http", "a.example", True),  # behind a proxy that ends TLS
        ("http://a.example", "https", "a.example", False),  # an attacker on the network can forge that page
        ("https://a.example", "https", "a.example:8080", False),
        ("https://b.example", "https", "a.example", False),
        ("https://", "https", "", False),
        ("null", "https", "null", False),
        ("", "https", "", False),
        ("ftp://a.example", "http", "a.example", False),
    ],
)
def test_is_own_origin(origin, scheme, host, own):
    assert is_own_origin(origin, scheme, host) is own


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
def test_check_cross_site_unsafe_methods(method):
    with pytest.raises(ForbiddenError):
        check_cross_site(method, "application/json", Headers({"Origin": "https://evil.example"}), "https")
    with pytest.raises(UnsupportedMediaTypeError):
        check_cross_site(method, "text/plain", Headers(), "https")
    check_cross_site(method, "", Headers(), "https")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_check_cross_site_safe_methods(method):
    check_cross_site(method, "text/plain", Headers({"Origin": "https://evil.example"}), "https")
