"""Tests of every route for every role, of expired and revoked tokens, and of a stolen token file."""

from __future__ import annotations

import json
import os
import re
import time

import pytest

from provisioner.api.routes import ROLES
from provisioner.auth.tokens import TOKEN_PREFIX, TokenFile
from provisioner.contracts.errors import ConfigError, ConflictError, NotFoundError
from tests.provisioner.api.conftest import job

RANK = ["viewer", "operator", "admin"]


def calls(app):
    """Yield (method, path, least role) of every route under /api."""
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/"):
            path = re.sub(r"<\w+>", "x", rule.rule)
            for method in sorted(rule.methods - {"HEAD"}):
                yield method, path, ROLES[rule.endpoint]


async def test_every_route_for_every_role(service):
    service.services.notifier.feed.close()  # event streams end at once
    for method, path, least in calls(service.app):
        answer = await service.call(method, path, role=None)
        assert answer.status_code == 401, (method, path)
        assert "Bearer" in answer.headers["WWW-Authenticate"]
        for role in RANK:
            status = (await service.call(method, path, role=role)).status_code
            if RANK.index(role) < RANK.index(least):
                assert status == 403, (method, path, role)
            else:
                assert status not in {401, 403}, (method, path, role)


async def test_forbidden_request_changes_nothing(service):
    await service.done()
    for method, path in (("DELETE", "/api/v1/volumes/fake/web-01"), ("POST", "/api/v1/cache/prune")):
        body = await (await service.call(method, path, role="operator")).get_json()
        assert body["error"] == "forbidden"
        assert "admin" in body["message"]
    assert (await service.submit(job("web-02"), role="viewer")).status_code == 403
    assert (await (await service.call("GET", "/api/v1/jobs", role="viewer")).get_json())["count"] == 1
    assert (await (await service.call("GET", "/api/v1/volumes", role="viewer")).get_json())["count"] == 1
    assert (await (await service.call("GET", "/api/v1/cache/images", role="viewer")).get_json())["count"] == 1


async def test_wrong_method_without_credential(service):
    assert (await service.call("PUT", "/api/v1/jobs", role=None)).status_code == 401
    assert (await service.call("PUT", "/api/v1/nothing", role=None)).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Token": ""},
        {"X-API-Token": "x"},
        {"X-API-Token": "\xe9"},
        {"X-API-Token": "lvp_" + "x" * 10000},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": ""},
    ],
)
async def test_invalid_token(service, headers):
    assert (await service.call("GET", "/api/v1/jobs", role=None, headers=headers)).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_bearer_token(service, scheme):
    headers = {"Authorization": f"{scheme} {service.token['viewer']}"}
    assert (await service.call("GET", "/api/v1/jobs", role=None, headers=headers)).status_code == 200


async def test_token_in_url_is_ignored(service):
    token = service.token["admin"]
    assert (await service.call("GET", f"/api/v1/jobs?token={token}&X-API-Token={token}", role=None)).status_code == 401


async def test_revoked_token_is_refused_at_once(service):
    assert (await service.call("GET", "/api/v1/jobs", role="viewer")).status_code == 200
    TokenFile(service.folder / "state" / "tokens.json").revoke("viewer")
    assert (await service.call("GET", "/api/v1/jobs", role="viewer")).status_code == 401
    assert (await service.call("GET", "/api/v1/jobs", role="operator")).status_code == 200


async def test_new_token_is_accepted_at_once(service):
    token = TokenFile(service.folder / "state" / "tokens.json").create("new", "viewer")
    assert (await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": token})).status_code == 200


async def test_missing_token_file(service):
    (service.folder / "state" / "tokens.json").unlink()
    assert (await service.call("GET", "/api/v1/jobs")).status_code == 401


async def test_expired_token(service):
    tokens = service.tokens
    old, young = tokens.create("old", "admin", time.time() - 1), tokens.create("young", "admin", time.time() + 3600)
    assert (await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": old})).status_code == 401
    assert (await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": young})).status_code == 200


async def test_refused_token_says_why(service):
    """Only the holder of the expired token learns that it expired, and its name."""
    old, gone = service.tokens.create("old", "admin", 86400.0), service.tokens.create("gone", "admin")
    service.tokens.revoke("gone")
    unknown = "the API token is unknown: it is wrong or was revoked"
    expected = {old: "the API token old expired at 1970-01-02T00:00:00Z", gone: unknown, f"{old}x": unknown}
    for token, message in expected.items():
        answer = await service.call("GET", "/api/v1/jobs", role=None, headers={"X-API-Token": token})
        assert (answer.status_code, (await answer.get_json())["message"]) == (401, message)


def test_token_expiry_is_exact(tmp_path):
    tokens = TokenFile(tmp_path / "tokens.json")
    token = tokens.create("a", "viewer", 1000.0)
    assert tokens.authenticate(token, 999.9).name == "a"
    assert tokens.authenticate(token, 1000.0) is None


def test_stolen_token_file_is_useless(tmp_path):
    """It contains no token, its digests are no credentials, and without the key no guess can be checked."""
    tokens = TokenFile(tmp_path / "tokens.json")
    token = tokens.create("a", "admin")
    text = (tmp_path / "tokens.json").read_text()
    digest = json.loads(text)["tokens"][0]["digest"]
    assert token.startswith(TOKEN_PREFIX)
    assert token.removeprefix(TOKEN_PREFIX) not in text
    assert tokens.authenticate(digest, 0) is None
    thief = tmp_path / "elsewhere"
    thief.mkdir()
    (thief / "tokens.json").write_text(text)
    assert TokenFile(thief / "tokens.json").authenticate(token, 0) is None


def test_token_files_are_private(tmp_path):
    old = os.umask(0)
    try:
        TokenFile(tmp_path / "state" / "tokens.json").create("a", "admin")
    finally:
        os.umask(old)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "state").iterdir()}
    assert modes == {"tokens.json": "0o600", "tokens.key": "0o600", "tokens.lock": "0o600"}
    assert oct((tmp_path / "state").stat().st_mode & 0o777) == "0o700"


def test_token_names_are_unique(tmp_path):
    tokens = TokenFile(tmp_path / "tokens.json")
    first = tokens.create("a", "viewer")
    with pytest.raises(ConflictError):
        tokens.create("a", "admin")
    tokens.revoke("a")
    with pytest.raises(NotFoundError):
        tokens.revoke("a")
    second = tokens.create("a", "admin")
    assert tokens.authenticate(first, 0) is None
    assert tokens.authenticate(second, 0).role == "admin"


def test_malformed_token_file_is_kept(tmp_path):
    (tmp_path / "tokens.json").write_text("{")
    tokens = TokenFile(tmp_path / "tokens.json")
    with pytest.raises(ConfigError, match="malformed"):
        tokens.list()
    with pytest.raises(ConfigError, match="malformed"):
        tokens.create("a", "viewer")
    assert (tmp_path / "tokens.json").read_text() == "{"
