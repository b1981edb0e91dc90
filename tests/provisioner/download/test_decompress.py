"""Decompression: every form yields the original bytes, and none exceeds its limits."""

import bz2
import functools
import gzip
import io
import itertools
import lzma
import os
import random
import struct
import subprocess
import sys
import zlib

import lz4.frame
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.contracts.errors import CacheError, CacheFullError, CorruptImageError, ImageTooLargeError
from provisioner.download.decompress import beginning_of, decompress
from provisioner.download.decompressors import INPUT, gzip_header_length
from provisioner.download.signatures import wrapper_of
from provisioner.download.zstd_frames import ZstdFrames
from tests.hostile import forge

pytestmark = pytest.mark.slow  # large files

MIB = 1024 * 1024


def zstd(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def zstd_streamed(data):
    """Compress without a content size in the header, in many blocks and with a checksum."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compressor.compress(data) + compressor.flush()


PACKERS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd,
    "lz4": lz4.frame.compress,
}
FORMS = [*PACKERS.items(), ("zst", zstd_streamed), ("xz", lambda data: lzma.compress(data, check=lzma.CHECK_NONE))]


@functools.cache
def an_image(size=3 * MIB + 12345):
    noise = random.Random(7).randbytes(MIB)
    return (noise + bytes(size))[: size - 4] + b"tail"


@functools.cache
def packed(pack, data):
    """Return ``pack(data)``, computed once: xz and bz2 take a second for an image."""
    return pack(data)


@pytest.fixture
def target(tmp_path):
    fd = os.open(tmp_path / "decompressed", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def run(compression, compressed, fd, limit=100 * MIB, min_free=0):
    return decompress(compression, io.BytesIO(compressed), fd, limit, min_free)


def content(fd):
    return os.pread(fd, 200 * MIB, 0)


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_decompress_is_sparse(compression, pack, target):
    image = an_image()
    compressed = packed(pack, image)
    assert wrapper_of(compressed) == compression
    assert run(compression, compressed, target) == len(image)
    assert content(target) == image
    assert os.fstat(target).st_blocks * 512 < 2 * MIB + 64 * 1024


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_decompress_several_members(compression, pack, target):
    image = an_image()
    assert run(compression, pack(image[:MIB]) + pack(image[MIB:]), target) == len(image)
    assert content(target) == image


@pytest.mark.parametrize(("compression", "pack"), FORMS)
@pytest.mark.parametrize("cut", [1, 7, 1000, 500_000])
def test_decompress_truncated(compression, pack, cut, target):
    compressed = packed(pack, an_image())
    with pytest.raises(CorruptImageError, match="cannot be decompressed"):
        run(compression, compressed[:-cut], target)


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_decompress_flipped_byte(compression, pack, target):
    compressed = bytearray(packed(pack, an_image()))
    compressed[len(compressed) // 2] ^= 0xFF
    try:
        size = run(compression, bytes(compressed), target)
    except CorruptImageError:
        return
    # xz without a check and zstd without a checksum cannot detect it; the image's digest does.
    assert size <= 100 * MIB


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_decompress_bomb(compression, pack, target):
    compressed = pack(bytes(16 * MIB))
    with pytest.raises(ImageTooLargeError, match="decompresses to more than the 4MiB that would fit"):
        run(compression, compressed, target, limit=4 * MIB)
    assert os.fstat(target).st_size <= 4 * MIB


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_decompress_trailing_data(compression, pack, target):
    compressed = packed(pack, an_image())
    assert run(compression, compressed + pack(b"more"), target) == len(an_image()) + 4
    if compression == "gz":
        return  # see test_decompress_ignored_bytes
    with pytest.raises(CorruptImageError):
        run(compression, compressed + b"garbage", target)


AFTER_GZIP = {
    "openwrt": bytes(8) + b'{ "metadata_version": "1.1" }\n' + b"FWx0" + bytes(12),
    "certificate": b"# fake certificateFWx0",
    "one byte": b"\x1f",
    "zeros": bytes(511),
    "zeros and text": bytes(INPUT) + b"text",
    "large": b"garbage " * INPUT,
}


@pytest.mark.parametrize("kind", AFTER_GZIP)
def test_decompress_ignored_bytes(kind, target):
    """As gzip(1) does; OpenWrt publishes its images so. What begins like a member must be one."""
    image = an_image()
    compressed = packed(gzip.compress, image) + AFTER_GZIP[kind]
    assert run("gz", compressed, target) == len(image)
    assert content(target) == image
    assert subprocess.run(["gzip", "-dc"], input=compressed, capture_output=True, check=False).stdout == image


@pytest.mark.parametrize("member", [b"\x1f\x8b", b"\x1f\x8b\x07" + bytes(20), gzip.compress(b"x")[:-1]])
def test_decompress_broken_last_member(member, target):
    with pytest.raises(CorruptImageError):
        run("gz", packed(gzip.compress, an_image()) + member, target)


# `make check` does not need lz4 installed.
@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [[], ["-9", "-B4", "-BD"], ["-B7", "--content-size"], ["--no-frame-crc"]], ids=" ".join
)
def test_lz4_tool(options, target, tmp_path):
    (tmp_path / "disk").write_bytes(an_image())
    subprocess.run(["lz4", "-q", *options, "disk", "disk.lz4"], check=True, cwd=tmp_path)
    compressed = (tmp_path / "disk.lz4").read_bytes()
    assert wrapper_of(compressed) == "lz4"
    assert run("lz4", compressed, target) == len(an_image())
    assert content(target) == an_image()


def test_decompress_xz_huge_dictionary(target):
    compressed = forge.xz_with_dictionary(b"x" * 1000, 36)  # 1 GiB
    with pytest.raises(CorruptImageError, match=r"[Mm]emory"):
        run("xz", compressed, target)


def with_window(log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(an_image()) + compressor.flush()


def test_decompress_zstd_long(target):
    # As `zstd --long` and `zstd --ultra -22` write files.
    assert run("zst", with_window(27), target) == len(an_image())
    assert content(target) == an_image()


def test_decompress_zstd_huge_window(target):
    with pytest.raises(CorruptImageError, match="than 128 MiB of memory; compress it with zstd --long=27"):
        run("zst", with_window(28), target)


def test_decompress_keeps_min_free(target):
    with pytest.raises(CacheFullError):
        run("gz", packed(gzip.compress, an_image()), target, min_free=2**62)


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_beginning_of_partial_file(compression, pack):
    image = random.Random(3).randbytes(2 * MIB)
    compressed = pack(image)
    beginning = beginning_of(compression, compressed[: len(compressed) * 3 // 4], 4096)
    assert beginning == image[: len(beginning)]
    assert len(beginning) == 4096


def test_wrapper_of_plain_bytes():
    assert wrapper_of(b"QFI\xfb" + bytes(100)) is None
    assert wrapper_of(b"") is None


@given(st.lists(st.binary(max_size=300_000), min_size=1, max_size=4), st.integers(1, 70_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_zstd_frames_at_boundary(parts, piece, checksum):
    compressed = b"".join(zstd(part, write_checksum=checksum) for part in parts)
    frames = ZstdFrames()
    for start in range(0, len(compressed), piece):
        frames.feed(compressed[start : start + piece])
    assert frames.at_boundary
    read_ahead = ZstdFrames()
    read_ahead.feed(compressed[:-1])
    assert not read_ahead.at_boundary


# --- many members, empty members ----------------------------------------------------------------------


def gz_member(content=b"", name=b"", blocks=b""):
    """Return a member with a name, and with ``blocks`` before its content."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = blocks + deflate.compress(content) + deflate.flush()
    return (
        bytes([31, 139, 8, 8, 0, 0, 0, 0, 0, 3])
        + name
        + b"\0"
        + body
        + struct.pack("<II", zlib.crc32(content), len(content))
    )


@pytest.mark.parametrize("compression", PACKERS)
def test_decompress_3000_members(compression, target):
    """More than Python's recursion limit. pbzip2 writes 1190 streams per GiB, pixz and bgzip many as well."""
    compressed = PACKERS[compression](b"x" * 900)
    assert run(compression, compressed * 3000, target) == 3000 * 900
    assert beginning_of(compression, compressed * 3000, 5000) == b"x" * 5000


EMPTY_FRAME = zstd(b"")
EMPTY = {
    "gz members": ("gz", gz_member()),
    "gz blocks": ("gz", gz_member(blocks=b"\0\0\0\xff\xff" * 100_000)),
    "xz streams": ("xz", lzma.compress(b"")),
    "xz padding": ("xz", lzma.compress(b"") + bytes(4 * 100_000)),
    "bz2 streams": ("bz2", bz2.compress(b"")),
    "zst frames": ("zst", EMPTY_FRAME),
    "zst blocks": ("zst", b"\x28\xb5\x2f\xfd\x00\x58" + bytes(3 * 100_000) + b"\1\0\0"),
    "zst skippable frames": ("zst", b"\x50\x2a\x4d\x18\0\0\0\0"),
}


class Stopped(BaseException):
    """Like trio.Cancelled, not an Exception."""


@pytest.mark.parametrize("kind", EMPTY)
def test_decompress_cancel_without_output(kind, target):
    """``check`` is called for each piece of input, even if there is never any output."""
    compression, piece = EMPTY[kind]
    compressed = io.BytesIO(piece * (1 + 2 * MIB // len(piece)))
    seen = []

    def check():
        seen.append(compressed.tell())
        if compressed.tell() >= 5 * INPUT:
            raise Stopped

    with pytest.raises(Stopped):
        decompress(compression, compressed, target, MIB, 0, check)
    assert max(now - before for before, now in itertools.pairwise(seen)) <= INPUT
    compressed.seek(5 * INPUT)
    with pytest.raises(Stopped):
        beginning_of(compression, compressed.getvalue(), MIB, check)


@pytest.mark.parametrize("kind", EMPTY)
def test_decompress_to_empty_image(kind, target):
    compression, piece = EMPTY[kind]
    assert run(compression, piece * (1 + 200_000 // len(piece)), target) == 0


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", PACKERS)
def test_decompress_disk_full(compression):
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(CacheFullError, match="no room to decompress") as caught:
        run(compression, packed(PACKERS[compression], an_image()), full)
    assert caught.value.temporary
    os.close(full)


def test_decompress_write_error(tmp_path):
    (tmp_path / "file").touch()
    unwritable = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(CacheError, match="cannot be written to the cache: Bad file descriptor"):
        run("gz", packed(gzip.compress, an_image()), unwritable)
    os.close(unwritable)


def test_decompress_read_error(target):
    class Broken(io.RawIOBase):
        def read(self, _size=-1, /):
            raise OSError(5, "Input/output error")

    for compression in PACKERS:
        with pytest.raises(OSError, match="Input/output error"):
            decompress(compression, Broken(), target, MIB, 0)


def test_decompress_long_gzip_header(target):
    image = an_image()
    compressed = gz_member(image, b"n" * 60_000)
    assert run("gz", compressed, target) == len(image)
    assert content(target) == image
    for long in (gz_member(image, b"n" * 5 * MIB), gz_member()[:10] + b"n" * 200_000):
        with pytest.raises(CorruptImageError, match="header is longer than 64 KiB"):
            run("gz", long, target)


HEADERS = [(0, b""), (1, b""), (2, b"cc"), (4, b"\3\0abc"), (8, b"name\0"), (16, b"comment\0"), (31, b"\1\0xn\0c\0cc")]


@pytest.mark.parametrize(("flags", "fields"), HEADERS)
def test_gzip_header_length(flags, fields):
    header = bytes([31, 139, 8, flags, 0, 0, 0, 0, 0, 3]) + fields
    assert gzip_header_length(header + b"body") == len(header)
    assert [gzip_header_length(header[:cut]) for cut in range(len(header))] == [None] * len(header)


def test_decompress_without_memory():
    """The address space leaves 32 MiB beyond Python; the dictionary alone takes 64 MiB."""
    code = """
import io, lzma, resource, sys, tempfile
from provisioner.contracts.errors import CacheError
from provisioner.download.decompress import decompress
packed = lzma.compress(b"x" * 1000, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 64 << 20}])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), -1))
try:
    decompress("xz", io.BytesIO(packed), tempfile.TemporaryFile().fileno(), 1 << 20, 0)
except CacheError as error:
    sys.exit(error.message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the host does not have enough memory to decompress the image" in done.stderr
