"""Tests of error responses and request ids."""

from __future__ import annotations

import re

import pytest

from tests.provisioner.api.conftest import job
from tests.provisioner.api.document import UUID, refused


@pytest.mark.parametrize(
    "path",
    ["/page/", "/api", "/api/v1", "/api/v1/", "/api/v2/jobs", "/api/v1/jobs/", "/api//v1/jobs", "/health/",
     "/metrics/x", "/%00", "/favicon.ico", "/api/v1/jobs/a/b/c"],
)  # fmt: skip
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


async def test_internal_error_shows_only_request_id(service):
    service.target.steps.fail_at["remove"] = RuntimeError("secret of the inside")
    response = await service.call("DELETE", "/api/v1/volumes/fake/web-01", headers={"X-Request-ID": "req-1"})
    body = await refused(response, 500, "internal error", "req-1")
    assert "secret" not in str(body)


@pytest.mark.parametrize("given", ["req-1", "x" * 128, "!~"])
async def test_valid_request_id_is_echoed(service, given):
    for path in ("/health", "/api/v1/jobs", "/nothing"):
        assert (await service.call("GET", path, headers={"X-Request-ID": given})).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "\xe9", "a\tb"])
async def test_invalid_request_id_is_replaced(service, given):
    for path in ("/health", "/api/v1/jobs", "/nothing"):
        response = await service.call("GET", path, headers={"X-Request-ID": given})
        assert re.fullmatch(UUID, response.headers["X-Request-ID"])


async def test_correlation_id_as_request_id(idle):
    response = await idle.submit(job("a", correlation_id="deploy-1"))
    assert response.headers["X-Request-ID"] == "deploy-1"
    response = await idle.submit(job("b", correlation_id="deploy-1"), headers={"X-Request-ID": "req-1"})
    assert response.headers["X-Request-ID"] == "req-1"
    response = await idle.submit(job("c", correlation_id="not sane"))
    assert re.fullmatch(UUID, response.headers["X-Request-ID"])


async def test_errors_have_request_id(service):
    for role in (None, "viewer", "admin"):
        response = await service.submit({"image_url": 1}, role=role, headers={"X-Request-ID": "req-1"})
        assert response.status_code >= 400
        assert response.headers["X-Request-ID"] == "req-1"
