"""Tests of token authentication, with a registry that the test writes."""

import base64
import hashlib
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from lvp_source_oci import OciSettings, OciSource
from provisioner.contracts import BackEndContext, ImageUrl, SecretRef
from provisioner.contracts.errors import (
    RemoteChangedError,
    RemoteDeniedError,
    RemoteUnavailableError,
    SourceError,
    UrlNotAllowedError,
)
from provisioner.contracts.testing.source_suite import read
from tests.servers.raw import raw_server, response

DISK = b"disk" * 1000
DIGEST = f"sha256:{hashlib.sha256(DISK).hexdigest()}"
LAYER = {"mediaType": "application/octet-stream", "digest": DIGEST, "size": len(DISK)}
MANIFEST = json.dumps({"schemaVersion": 2, "layers": [LAYER]}).encode()


class Scripted:
    """A registry with a token service at /token. ``valid`` is the token that it accepts."""

    def __init__(self, realm="", *, scope="repository:team/image:pull,push", token="one", login=None):
        self.realm, self.scope, self.valid, self.issued, self.login = realm, scope, token, token, login
        self.asked = []

    async def __call__(self, request, stream):
        path = urlsplit(request.target).path
        if path == "/token":
            self.asked.append((parse_qs(urlsplit(request.target).query), request.headers.get("authorization")))
            if self.login and self.asked[-1][1] != self.login:
                await stream.send_all(response("401 No\nContent-Length: 0"))
                return
            body = json.dumps({"token": self.issued}).encode()
        elif request.headers.get("authorization") != f"Bearer {self.valid}":
            realm = self.realm or f"http://{request.headers['host']}/token"
            challenge = f'Bearer realm="{realm}",service="registry",scope="{self.scope}"'
            await stream.send_all(response(f"401 No\nWWW-Authenticate: {challenge}\nContent-Length: 0"))
            return
        else:
            body = MANIFEST if "/manifests/" in path else DISK
        await stream.send_all(response(f"200 OK\nContent-Length: {len(body)}", body))


def source_of(server, tmp_path, **settings):
    table = {"registries": [server.url.removeprefix("http://")], "plain_http": True, **settings}
    source = OciSource(OciSettings(**table), BackEndContext("lab", tmp_path))
    return source, ImageUrl.parse(f"oci://{table['registries'][0]}/team/image:1")


async def test_anonymous_token_to_pull_only(tmp_path):
    registry = Scripted()
    async with raw_server(registry) as server:
        source, url = source_of(server, tmp_path)
        image = await source.stat(url)
        assert (image.size, str(image.digest), image.version) == (len(DISK), DIGEST, DIGEST)
        async with source.open(url, version=image.version) as stream:
            assert await read(stream) == DISK
        await source.aclose()
    assert registry.asked == [({"service": ["registry"], "scope": ["repository:team/image:pull"]}, None)]


async def test_expired_token_is_renewed(tmp_path):
    registry = Scripted()
    async with raw_server(registry) as server:
        source, url = source_of(server, tmp_path)
        await source.stat(url)
        registry.valid = registry.issued = "two"
        await source.stat(url)
        assert len(registry.asked) == 2
        registry.valid = "never issued"
        with pytest.raises(RemoteDeniedError, match="HTTP 401"):
            await source.stat(url)
        await source.aclose()


async def test_login_goes_to_the_token_service_only(tmp_path):
    (tmp_path / "password").write_text("s3cret-word\n")
    login = {"username": "kvm", "password": SecretRef(f"file:{tmp_path}/password")}
    registry = Scripted(login="Basic " + base64.b64encode(b"kvm:s3cret-word").decode())
    async with raw_server(registry) as server:
        source, url = source_of(server, tmp_path, **login)
        await source.stat(url)
        assert all("Basic" not in r.headers.get("authorization", "") for r in server.requests if "/v2/" in r.target)
        await source.aclose()
        registry.login = "Basic other"
        source, url = source_of(server, tmp_path, **login)
        with pytest.raises(RemoteDeniedError, match="check the credentials of source lab") as raised:
            await source.stat(url)
        assert "s3cret-word" not in str(raised.value)
        await source.aclose()


async def test_token_service_on_another_host(tmp_path):
    async with raw_server(Scripted()) as other:
        registry = Scripted(f"{other.url}/token")
        async with raw_server(registry) as server:
            source, url = source_of(server, tmp_path)
            with pytest.raises(UrlNotAllowedError, match="token_urls of source lab"):
                await source.stat(url)
            assert not other.requests
            await source.aclose()
            source, url = source_of(server, tmp_path, token_urls=[f"{other.url}/"])
            assert (await source.stat(url)).size == len(DISK)
            await source.aclose()


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "x" * 20000])
async def test_unusable_token(token, tmp_path):
    async with raw_server(Scripted(token=token)) as server:
        source, url = source_of(server, tmp_path)
        with pytest.raises(SourceError, match="sent no token"):
            await source.stat(url)
        await source.aclose()


@pytest.mark.parametrize(
    ("head", "body", "kind", "match"),
    [
        ("429 No\nRetry-After: 17", "TOOMANYREQUESTS", RemoteUnavailableError, r"again in 17 s \(TOOMANYREQUESTS"),
        ("403 No", "DENIED", RemoteDeniedError, r"denies access to .* \(DENIED, HTTP 403\)"),
        ("503 No", "", RemoteUnavailableError, "temporarily"),
        ("500 No", "UNKNOWN", RemoteUnavailableError, "temporarily"),
        ("401 No\nWWW-Authenticate: Negotiate", "", RemoteDeniedError, "HTTP 401"),
    ],
)
async def test_refusals(head, body, kind, match, tmp_path):
    async def answer(_request, stream):
        text = json.dumps({"errors": [{"code": body, "message": "hostile"}]}).encode()
        await stream.send_all(response(f"{head}\nContent-Length: {len(text)}", text))

    async with raw_server(answer) as server:
        source, url = source_of(server, tmp_path)
        with pytest.raises(kind, match=match) as raised:
            await source.stat(url)
        assert "hostile" not in str(raised.value)
        await source.aclose()


async def test_blob_redirect_needs_redirect_urls(tmp_path):
    async def blobs(request, stream):
        assert "authorization" not in request.headers
        await stream.send_all(response(f"200 OK\nContent-Length: {len(DISK)}", DISK))

    registry = Scripted()

    async def answer(request, stream):
        if "/blobs/" in request.target:
            place = f"{other.url}/blob?X-Amz-Signature=s3cret-word"
            await stream.send_all(response(f"307 Go\nLocation: {place}\nContent-Length: 0"))
        else:
            await registry(request, stream)

    async with raw_server(blobs) as other, raw_server(answer) as server:
        source, url = source_of(server, tmp_path)
        with pytest.raises(UrlNotAllowedError, match="redirects there") as raised:
            async with source.open(url):
                pass
        assert "s3cret-word" not in str(raised.value)
        await source.aclose()
        source, url = source_of(server, tmp_path, redirect_urls=[f"{other.url}/"])
        async with source.open(url) as stream:
            assert await read(stream) == DISK
        await source.aclose()


async def test_lost_layer(tmp_path):
    async def answer(_request, stream):
        text = b'{"errors": [{"code": "BLOB_UNKNOWN"}]}'
        await stream.send_all(response(f"404 No\nContent-Length: {len(text)}", text))

    async with raw_server(answer) as server:
        source, url = source_of(server, tmp_path)
        with pytest.raises(RemoteChangedError, match="no longer has the layer"):
            async with source.open(url, version=DIGEST):
                pass
        await source.aclose()
