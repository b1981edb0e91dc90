"""No error message contains the query or login of a url."""

import inspect
import socket
import ssl

import httpcore
import httpx
import pytest

from provisioner.contracts import ImageUrl, errors
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.http.socket_io import broken
from provisioner.contracts.redaction import redact
from provisioner.contracts.urls import shown

SECRET = "5ECRET"
URL = f"https://images.example.com/disk?X-Amz-Credential=AKIA&X-Amz-Signature={SECRET}"
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ProvisionerError) and inspect.signature(kind).parameters
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_error_messages_redacted(kind):
    error = kind(f"cannot read {URL} now (via http://user:{SECRET}@proxy:3128/)")
    assert SECRET not in error.message + str(error) + repr(error)
    assert error.message == "cannot read https://images.example.com/disk now (via http://...@proxy:3128/)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/key?prefix=5ECRET, then", "s3://bucket/key then"),
        ("s3://bucket/key?versionId=nJ8.x_-%2B, then", "s3://bucket/key?versionId=nJ8.x_-%2B, then"),
        ("s3://bucket/key?versionId=3: gone", "s3://bucket/key?versionId=3: gone"),
        ("s3://bucket/key?versionId=3&X-Amz-Signature=5ECRET", "s3://bucket/key"),
        ("s3://bucket/key?sig=5ECRET&versionId=3", "s3://bucket/key"),
        (f"s3://bucket/key?versionId={'5ECRET' * 30}", "s3://bucket/key"),
        ("http://a/b#versionId=3", "http://a/b"),
        ("'http://a/b?x=5ECRET' and \"http://a/c?5ECRET\"", "'http://a/b' and \"http://a/c\""),
        ('{"url": "http://a/b?sig=5ECRET", "n": 1}', '{"url": "http://a/b", "n": 1}'),
        ("<http://a/b#5ECRET>", "<http://a/b>"),
        ("GET /disk?X-Amz-Signature=5ECRET&a=1 HTTP/1.1", "GET /disk?X-Amz-Signature=...&a=1 HTTP/1.1"),
        ("http://a/b is fine? yes", "http://a/b is fine? yes"),
        ("no url: 5 = 5?", "no url: 5 = 5?"),
    ],
)
def test_redact(text, expected):
    assert redact(text) == expected


def test_image_url_text_has_no_query():
    url = ImageUrl.parse(URL)
    assert SECRET in url.query
    assert SECRET not in f"{url} {url!r} {url!s} {shown(URL)} {shown('http://u:5ECRET@a/b')}"


REQUEST = httpx.Request("GET", URL)
BREAKS = [
    httpx.InvalidURL(f"Invalid port in {URL}"),
    httpx.UnsupportedProtocol(f"Request URL {URL} has an unsupported protocol", request=REQUEST),
    httpx.LocalProtocolError(f"Illegal header value b'{SECRET}'", request=REQUEST),
    httpx.RemoteProtocolError(f"illegal status line: bytearray(b'GET /disk?q={SECRET}')", request=REQUEST),
    httpx.RemoteProtocolError(f"illegal header line: bytearray(b'{SECRET}')", request=REQUEST),
    httpx.ReadError(f"broken at {URL}", request=REQUEST),
    httpx.WriteError("", request=REQUEST),
    httpx.ConnectError(f"cannot reach {URL}", request=REQUEST),
    httpx.ConnectTimeout(URL, request=REQUEST),
    httpx.ReadTimeout(URL, request=REQUEST),
    httpx.PoolTimeout(URL, request=REQUEST),
    httpx.ProxyError(f"407 {SECRET}", request=REQUEST),
    httpx.TooManyRedirects(URL, request=REQUEST),
    httpx.DecodingError(URL, request=REQUEST),
    httpx.StreamConsumed(),
    httpcore.RemoteProtocolError(f"illegal chunk header: {SECRET}"),
    ssl.SSLError(1, f"[SSL] {URL}"),
    socket.gaierror(socket.EAI_AGAIN, "temporary failure"),
    ConnectionResetError(104, "Connection reset by peer"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", BREAKS, ids=repr)
def test_broken_transfer_shows_no_secret(error):
    translated = broken(error, shown(URL))
    assert SECRET not in translated.message
    assert "https://images.example.com/disk" in translated.message
