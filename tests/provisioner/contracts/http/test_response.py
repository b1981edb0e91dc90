import httpx
import pytest

from provisioner.contracts.errors import (
    RemoteChangedError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
)
from provisioner.contracts.http.response import Span, check_encoding, fault, span_of, version_of, whole_size
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
    error = fault(status, "https://a/b")
    assert type(error) is kind
    assert error.temporary is temporary
    assert "https://a/b" in error.message


def test_fault_none_for_success():
    assert fault(200, "x") is None
    assert fault(206, "x") is None


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
    for url, encoding in (("http://a/disk.gz?x", "x-gzip"), ("http://a/disk.XZ", "xz"), ("http://a/disk", "identity")):
        check_encoding(httpx.Headers({"content-encoding": encoding}), url)
    for url, encoding in (("http://a/disk", "gzip"), ("http://a/disk.gz", "br"), ("http://a/disk.gz", "xz")):
        with pytest.raises(SourceError, match="encoding"):
            check_encoding(httpx.Headers({"content-encoding": encoding}), url)


def test_shown_hides_secrets():
    assert shown("https://a/b?X-Amz-Signature=secret") == "https://a/b"
    assert shown("https://user:secret@a/b") == "the url"
