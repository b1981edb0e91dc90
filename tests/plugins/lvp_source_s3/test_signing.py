"""The requests that an S3 source sends, as a test server receives them."""

import re

import pytest

from lvp_source_s3 import MinioSettings, S3Source
from provisioner.contracts import BackEndContext, ImageUrl, SecretRef
from provisioner.contracts.errors import RemoteDeniedError, UrlNotAllowedError
from tests.servers.raw import holds, raw_server, says


@pytest.fixture
def source_of(tmp_path):
    def make(server, **settings):
        for name in ("access", "secret", "token"):
            (tmp_path / name).write_text(f"the-{name}-value")
        refs = {
            "access_key": SecretRef(f"file:{tmp_path}/access"),
            "secret_key": SecretRef(f"file:{tmp_path}/secret"),
            "session_token": SecretRef(f"file:{tmp_path}/token"),
        }
        return S3Source(MinioSettings(endpoint=server.url, **refs, **settings), BackEndContext("lab", tmp_path))

    return make


async def test_signature_scope_and_headers(source_of):
    """The signature names the key, day and region, and covers the host and the session token."""
    async with raw_server(holds(b"abc")) as server:
        source = source_of(server, region="eu-west-1")
        assert (await source.stat(ImageUrl.parse(f"{server.url}/images/a+b"))).size == 3
        request = server.requests[0]
        assert request.target == "/images/a%2Bb"
        assert request.headers["host"] == server.url.removeprefix("http://")
        assert request.headers["x-amz-security-token"] == "the-token-value"
        assert re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=the-access-value/\d{8}/eu-west-1/s3/aws4_request, "
            r"SignedHeaders=host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date;x-amz-security-token, "
            r"Signature=[0-9a-f]{64}",
            request.headers["authorization"],
        )
        await source.aclose()


async def test_redirect_to_other_host_is_refused(source_of):
    async with raw_server(holds(b"abc")) as elsewhere:
        moved = f"307 On\nLocation: {elsewhere.url}/images/a\nContent-Length: 0"
        async with raw_server(says(moved)) as server:
            source = source_of(server)
            with pytest.raises(UrlNotAllowedError, match="redirects there"):
                await source.stat(ImageUrl.parse(f"{server.url}/images/a"))
            assert elsewhere.requests == []
            await source.aclose()


async def test_denied_without_error_body(source_of):
    async with raw_server(says("403 No\nContent-Length: 0")) as server:
        source = source_of(server)
        with pytest.raises(RemoteDeniedError) as caught:
            await source.stat(ImageUrl.parse(f"{server.url}/images/a"))
        assert "value" not in caught.value.message
        assert [request.method for request in server.requests] == ["HEAD", "GET"]
        await source.aclose()
