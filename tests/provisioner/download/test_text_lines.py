"""Texts that arrive in pieces: encodings, gzip, and the bounds."""

import codecs
import gzip
import zlib

import pytest

from provisioner.contracts.errors import ImageError
from provisioner.download import text_lines
from provisioner.download.text_lines import MAX_LINE, TextLines

TEXT = "first\r\nsecond é\n\nlast"


def lines_of(data, size):
    lines = TextLines()
    got = [line for at in range(0, len(data), size) for piece in lines.feed(data[at : at + size]) for line in piece]
    return [line for line in got + lines.end() if line]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        gzip.compress(TEXT.encode()),
    ],
)
def test_lines_in_any_encoding(data, size):
    assert lines_of(data, size) == ["first", "second é", "last"]


def test_latin_1_text():
    assert lines_of("a\nStraße\nb".encode("latin-1"), 100) == ["a", "Stra\ufffde", "b"]


@pytest.mark.parametrize("data", [b"", b"a", b"\n"])
def test_short_text(data):
    assert lines_of(data, 1) == [data.decode()] * (data == b"a")


@pytest.mark.parametrize(
    "page", [b"<!doctype html><html>sign in</html>", b"\n  <html>", b'\xef\xbb\xbf<?xml version="1.0"?>']
)
def test_web_page(page):
    with pytest.raises(ImageError, match="web page"):
        lines_of(page, 5)


def test_long_line_is_cut():
    assert all(len(line) <= MAX_LINE + 2**15 for line in lines_of(b"x" * 2**20, 2**20))


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(text_lines, "MAX_BYTES", 2**20)


@pytest.mark.usefixtures("small_limit")
def test_too_much_text():
    with pytest.raises(ImageError, match="too large for a checksum file"):
        lines_of(b"\n" * (2**20 + 1), 2**20)


@pytest.mark.usefixtures("small_limit")
def test_gzip_bomb():
    """A small file that decompresses to a lot is given up at the limit, a piece at a time."""
    stream = zlib.compressobj(wbits=31)
    bomb = b"".join(stream.compress(b"\n" * 2**20) for _ in range(4)) + stream.flush()
    with pytest.raises(ImageError, match="too large"):
        lines_of(bomb, len(bomb))


def test_damaged_gzip():
    with pytest.raises(ImageError, match="cannot be decompressed"):
        lines_of(b"\x1f\x8b\x08" + b"\xff" * 100, 20)
