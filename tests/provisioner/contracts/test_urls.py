"""Strict parsing of urls: ambiguous ones are rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioner.contracts.errors import InvalidRequestError
from provisioner.contracts.urls import MAX_URL_LENGTH, ImageUrl, UrlPrefix


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://images.example.com/a/b.qcow2", ("https", "images.example.com", 443, "/a/b.qcow2", "")),
        ("HTTP://Images.Example.COM:8080/A?x=1&y", ("http", "images.example.com", 8080, "/A", "x=1&y")),
        ("https://h", ("https", "h", 443, "/", "")),
        ("https://[2001:DB8::1]:9000/x", ("https", "2001:db8::1", 9000, "/x", "")),
        ("s3://bucket/key%20with%20blanks", ("s3", "bucket", None, "/key%20with%20blanks", "")),
        ("file:///srv/images/a%20b", ("file", "", None, "/srv/images/a%20b", "")),
        ("FILE://localhost/srv/x", ("file", "", None, "/srv/x", "")),
        ("https://h/a..b/.hidden/...", ("https", "h", 443, "/a..b/.hidden/...", "")),
    ],
)
def test_image_url_parse(text, expected):
    url = ImageUrl.parse(text)
    assert (url.scheme, url.host, url.port, url.path, url.query) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "images/x",
        "//h/x",
        "https:///x",
        "https:/h/x",
        "file://host/etc/passwd",
        "file://host:80/x",
        "file:etc/passwd",
        "file://",
        "file:///srv/../etc/passwd",
        "https://",
        "https://user:pw@h/x",
        "https://user@h/x",
        "https://h@evil/x",
        "https://h/../x",
        "https://h/a/..",
        "https://h/%2e%2e/x",
        "https://h/.%2E/x",
        "https://h/%252e%252e/x",
        "https://h/./x",
        "https://h/a/%2e%2e%2fx",
        "https://h/x#frag",
        "https://h/a b",
        "https://h/a\nb",
        "https://h/\tx",
        "https://h\\x",
        "https://h/\0",
        "https://h:port/x",
        "https://h:99999/x",
        "https://h:-1/x",
        "https://[::1/x",
        "https://h h/x",
        "https://h%2fevil/x",
        "https://h/" + "x" * MAX_URL_LENGTH,
    ],
)
def test_image_url_ambiguous(text):
    with pytest.raises(InvalidRequestError, match="image_url"):
        ImageUrl.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://h/\u00fc",
        "https://h/\u2025/x",
        "https://h/\u202ex",
        "https://\u202ehost/x",
        "https://user\u00fc@h/x",
        "https://h\u2024\u2024/x",
        "https://\u2100.example/x",
        "https://" + "\u00fc" * 70 + "/x",
    ],
)
def test_image_url_non_ascii(text):
    with pytest.raises(InvalidRequestError, match="image_url"):
        ImageUrl.parse(text)


@pytest.mark.parametrize(
    ("text", "ascii_text"),
    [
        ("https://ex\u00e4mple.com:8443/pub/a", "https://xn--exmple-cua.com:8443/pub/a"),
        ("https://\u4f8b\u3048.jp/a?sig=x", "https://xn--r8jz45g.jp/a?sig=x"),
        ("https://B\u00dcCHER.example", "https://xn--bcher-kva.example"),
    ],
)
def test_image_url_international_host(text, ascii_text):
    """It is looked up, compared and shown in one form only."""
    assert ImageUrl.parse(text) == ImageUrl.parse(ascii_text)
    assert ImageUrl.parse(text).text == ascii_text
    assert UrlPrefix.parse(text.partition("?")[0]).covers(ImageUrl.parse(ascii_text))


def test_image_url_parts():
    url = ImageUrl.parse("https://h:8443/pub/disk%20one.qcow2?signature=secret")
    assert url.file_name == "disk one.qcow2"
    assert url.without_query == "https://h:8443/pub/disk%20one.qcow2"
    assert ImageUrl.parse("https://h/pub/").file_name == ""
    assert ImageUrl.parse("https://[::1]:443/x").netloc == "[::1]"
    assert ImageUrl.parse("http://[::1]:443/x").netloc == "[::1]:443"


@pytest.mark.parametrize(
    ("prefix", "url", "covered"),
    [
        ("https://h/pub", "https://h/pub", True),
        ("https://h/pub", "https://h/pub/x", True),
        ("https://h/pub/", "https://h/pub/x/y", True),
        ("https://h/pub", "https://h/public", False),
        ("https://h/pub", "https://h/Pub/x", False),
        ("https://h/pub", "https://h/", False),
        ("https://h", "https://h/any", True),
        ("https://h/pub", "http://h/pub/x", False),
        ("https://h/pub", "https://h:8443/pub/x", False),
        ("https://h:443/pub", "https://h/pub/x", True),
        ("https://H/pub", "https://h/pub/x", True),
        ("https://h:*/pub", "https://h:8443/pub/x", True),
        ("https://h:*", "https://h/pub/x", True),
        ("https://*.example.com/", "https://a.example.com/x", True),
        ("https://*.example.com/", "https://a.b.example.com/x", True),
        ("https://*.example.com/", "https://example.com/x", False),
        ("https://*.example.com/", "https://evilexample.com/x", False),
        ("https://*.example.com/", "https://a.example.com.evil/x", False),
        ("https://*.example.com:*/p", "https://a.example.com:1/p", True),
        ("http://*.254/", "http://169.254.169.254/x", False),  # no wildcard covers an address
        ("http://*.1/", "http://127.1/x", False),
    ],
)
def test_url_prefix_covers(prefix, url, covered):
    assert UrlPrefix.parse(prefix).covers(ImageUrl.parse(url)) is covered


@pytest.mark.parametrize(
    "text", ["", "images.example.com", "https://user@h/", "https://h/../x", "https://*/x", "https://a.*.b/x"]
)
def test_url_prefix_invalid(text):
    with pytest.raises(InvalidRequestError):
        UrlPrefix.parse(text)


@given(st.text(max_size=60))
def test_url_prefix_never_escaped(tail):
    """Any url that begins with the prefix is rejected or stays below it."""
    try:
        url = ImageUrl.parse("https://h/pub/" + tail)
    except InvalidRequestError:
        return
    assert UrlPrefix.parse("https://h/pub").covers(url)
    assert ".." not in url.path.split("/")


def test_image_url_keeps_its_text():
    """It is sent and stored as it was given; two spellings of one url are equal."""
    text = "HTTPS://H:443/pub/a?signature=secret"
    url = ImageUrl.parse(text)
    assert (url.text, str(url)) == (text, "https://h/pub/a")
    assert url == ImageUrl.parse("https://h/pub/a?signature=secret")
    assert ImageUrl.parse(url) is url
    assert ImageUrl("https", "h", 443, "/pub/a", "x=1").text == "https://h/pub/a?x=1"


def test_neighbours_of_an_image_have_no_query():
    url = ImageUrl.parse("https://h:8443/pub/disk?signature=secret")
    assert url.with_path(f"{url.path}.sha256").text == "https://h:8443/pub/disk.sha256"
    with pytest.raises(InvalidRequestError):
        url.with_path("/pub/../x")
    assert url.origin == "https://h:8443"


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("versionId=3sL4kqtJ%2BrmS", True),
        ("versionId=3&X-Amz-Signature=a", False),
        ("versionId=", False),
        ("x=1", False),
    ],
)
def test_version_is_no_secret(query, kept):
    """An object's version belongs to the image's name; any other query may be a signature."""
    url = ImageUrl.parse(f"s3://bucket/key?{query}")
    assert str(url) == (f"s3://bucket/key?{query}" if kept else "s3://bucket/key")
    assert url.has_secret is not kept
    assert url.text == f"s3://bucket/key?{query}"
