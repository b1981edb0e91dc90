import base64
import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from provisioner.contracts import Checksum
from provisioner.contracts.errors import (
    RemoteChangedError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
)
from provisioner.contracts.http.response import (
    Span,
    check_encoding,
    digest_of,
    error_for,
    span_of,
    strong_version_of,
    version_of,
    whole_size,
)
from provisioner.contracts.urls import shown


@pytest.mark.parametrize(
    ("status", "kind", "temporary"),
    [
        (404, RemoteNotFoundError, False),
        (410, RemoteNotFoundError, False),
        (401, RemoteDeniedError, False),
        (403, RemoteDeniedError, False),
        (407, RemoteDeniedError, False),
        (412, RemoteChangedError, True),
        (416, RemoteChangedError, True),
        (408, RemoteUnavailableError, True),
        (429, RemoteUnavailableError, True),
        (500, RemoteUnavailableError, True),
        (502, RemoteUnavailableError, True),
        (503, RemoteUnavailableError, True),
        (504, RemoteUnavailableError, True),
        (204, SourceError, False),
        (304, SourceError, False),
        (400, SourceError, False),
        (418, SourceError, False),
        (501, SourceError, False),
    ],
)
def test_fault_kind_and_temporary(status, kind, temporary):
    error = error_for(status, "https://a/b")
    assert type(error) is kind
    assert error.temporary is temporary
    assert "https://a/b" in error.message


def test_fault_none_for_success():
    assert error_for(200, "x") is None
    assert error_for(206, "x") is None


RANGE = "content-range"


@pytest.mark.parametrize(
    ("status", "headers", "start", "stop", "span"),
    [
        (200, {"content-length": "10"}, 0, None, Span(0, 10)),
        (200, {}, 0, None, Span(0, None, framed=True)),
        (200, {"content-length": "ten"}, 0, None, Span(0, None, framed=True)),
        (200, {"content-length": "10", "transfer-encoding": "chunked"}, 0, None, Span(0, None, framed=True)),
        # a server without ranges starts over; no more than requested is used
        (200, {"content-length": "10"}, 4, None, Span(0, 10)),
        (200, {"content-length": "10"}, 4, 6, Span(0, 6)),
        (200, {}, 4, 6, Span(0, 6, framed=True)),
        (206, {RANGE: "bytes 4-9/10", "content-length": "6"}, 4, None, Span(4, 6)),
        (206, {RANGE: "bytes 4-9/10"}, 4, None, Span(4, 6, framed=True)),
        (206, {RANGE: "bytes 4-9/*", "content-length": "6"}, 4, None, Span(4, 6)),
        (206, {RANGE: "bytes 4-5/10", "content-length": "2"}, 4, 6, Span(4, 2)),
        # the image ends before the requested end
        (206, {RANGE: "bytes 4-9/10", "content-length": "6"}, 4, 100, Span(4, 6)),
        # less than requested, although there is more
        (206, {RANGE: "bytes 4-6/10", "content-length": "3"}, 4, None, Span(4, 3, lacking=3)),
        (206, {RANGE: "bytes 4-6/10", "content-length": "3"}, 4, 9, Span(4, 3, lacking=2)),
    ],
)
def test_span_of_response(status, headers, start, stop, span):
    assert span_of(status, httpx.Headers(headers), start, stop, "x") == span


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {RANGE: "bytes */10"},
        {RANGE: "items 4-9/10"},
        {RANGE: "bytes 0-9/10", "content-length": "10"},
        {RANGE: "bytes 5-9/10", "content-length": "5"},
        {RANGE: "bytes 4-3/10"},
        {RANGE: "bytes 4-20/10"},
        {RANGE: "bytes 4-9/10", "content-length": "7"},
        {"content-type": "multipart/byteranges; boundary=x", "content-length": "100"},
    ],
)
def test_span_of_wrong_range(headers):
    with pytest.raises(SourceError):
        span_of(206, httpx.Headers(headers), 4, None, "x")


def test_span_of_larger_range():
    with pytest.raises(SourceError, match="a different range"):
        span_of(206, httpx.Headers({RANGE: "bytes 4-9/10"}), 4, 6, "x")


def test_version_of_etag_or_time():
    assert version_of(httpx.Headers({"etag": '"abc"', "last-modified": "then"})) == '"abc"'
    assert version_of(httpx.Headers({"etag": 'W/"abc"', "last-modified": "then"})) == "modified then"
    assert version_of(httpx.Headers({"etag": 'W/"abc"'})) is None


@pytest.mark.parametrize(
    ("status", "headers", "size"),
    [
        (200, {"content-length": "10"}, 10),
        (200, {}, None),
        (200, {"content-length": "-1"}, None),
        (200, {"content-length": "9" * 5000}, None),
        (206, {RANGE: "bytes 0-0/10", "content-length": "1"}, 10),
        (206, {RANGE: "bytes 0-0/*", "content-length": "1"}, None),
        (416, {RANGE: "bytes */0", "content-length": "100"}, 0),
    ],
)
def test_whole_size(status, headers, size):
    assert whole_size(status, httpx.Headers(headers)) == size


def test_check_encoding():
    """Labels of stored files are accepted; an encoding that cannot be recognized in the bytes is not."""
    for encoding in ("x-gzip", "XZ", "identity", "", "none", "aws-chunked", "UTF-8", "gzip", "aws-chunked, gzip"):
        check_encoding(httpx.Headers({"content-encoding": encoding}), "http://a/disk")
    for encoding in ("br", "deflate", "compress", "gzip, br"):
        with pytest.raises(SourceError, match="encoding"):
            check_encoding(httpx.Headers({"content-encoding": encoding}), "http://a/disk.gz")


HEX = hashlib.sha256(b"image").hexdigest()
LONG = hashlib.sha512(b"image").hexdigest()
BASE64, LONG64 = (base64.b64encode(bytes.fromhex(digits)).decode() for digits in (HEX, LONG))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"x-amz-checksum-sha256": BASE64}, HEX),
        ({"x-amz-checksum-sha256": BASE64, "x-amz-checksum-type": "FULL_OBJECT"}, HEX),
        ({"x-amz-checksum-sha256": BASE64, "x-amz-checksum-type": "COMPOSITE"}, None),
        ({"x-amz-checksum-sha256": f"{BASE64}-3"}, None),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, None),
        ({"x-checksum-sha256": HEX.upper(), "x-checksum-sha1": "0" * 40}, HEX),
        ({"x-checksum-sha256": HEX[1:]}, None),
        ({"x-checksum-md5": "0" * 32, "content-md5": "AAAA"}, None),
        ({"repr-digest": f"sha-256=:{BASE64}:"}, HEX),
        ({"repr-digest": f"md5=:AAAA:, sha-512=:{LONG64}:"}, LONG),
        ({"repr-digest": f"sha-256=:{LONG64}:"}, None),
        ({"repr-digest": f"x-sha-256=:{BASE64}:"}, None),
        ({"content-digest": f"sha-256=:{BASE64}:"}, None),
    ],
)
def test_digest_of(headers, expected):
    """Only whole-object digests of a strong algorithm count, and none of just this response's body."""
    found = digest_of(httpx.Headers(headers))
    assert (found.hex if found else None) == expected


def test_digest_of_encoded_body():
    """A Repr-Digest covers the encoded bytes, which are the ones that are stored."""
    headers = {"repr-digest": f"sha-256=:{BASE64}:", "content-encoding": "gzip"}
    assert digest_of(httpx.Headers(headers)) == Checksum("sha256", HEX)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("3", 3, 3),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("in an hour", 3000, 3600),
    ],
)
def test_retry_after(text, least, most):
    if text == "in an hour":  # counted from now, not from when the tests were collected
        text = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    error = error_for(503, "http://a/disk", httpx.Headers({"retry-after": text}))
    assert least <= error.retry_after <= most


@pytest.mark.parametrize("text", ["", "soon", "-5", "Wed, 21 Oct 2015", "9" * 400])
def test_retry_after_malformed(text):
    assert error_for(429, "http://a/disk", httpx.Headers({"retry-after": text})).retry_after is None


def test_shown_hides_secrets():
    assert shown("https://a/b?X-Amz-Signature=secret") == "https://a/b"
    assert shown("https://user:secret@a/b") == "the url"


@pytest.mark.parametrize(
    ("etag", "modified", "date", "strong"),
    [
        (None, "10:00:00 GMT", "11:00:00 GMT", False),
        ('W/"a"', None, "11:00:00 GMT", False),
        ('"a"', None, None, True),
        ('"a"', "10:00:00 GMT", "10:00:02 GMT", True),
        ('"a"', "10:00:00 GMT", "10:00:01 GMT", False),
        ('"a"', "10:00:00 GMT", None, False),
        ('"a"', "lately", "10:00:05 GMT", False),
        ('"a"', "10:00:00 -0000", "10:00:05 GMT", False),
    ],
)
def test_strong_version_of(etag, modified, date, strong):
    """A tag made of a time in seconds counts only if that second is over."""
    day = "Fri, 27 Nov 2026"
    given = {"etag": etag, "last-modified": modified and f"{day} {modified}", "date": date and f"{day} {date}"}
    headers = httpx.Headers({name: value for name, value in given.items() if value})
    assert strong_version_of(headers) == (etag if strong else None)
