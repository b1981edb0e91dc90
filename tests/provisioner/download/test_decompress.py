"""Compressed images: every form unpacks to its bytes, and no form unpacks past its bounds."""

import bz2
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

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.contracts.errors import CacheError, CacheFullError, CorruptImageError, ImageTooLargeError
from provisioner.download.decompress import beginning_of, compression_of, decompress
from provisioner.download.decompressors import INPUT, gzip_header_length
from provisioner.download.zstd_frames import ZstdFrames

MIB = 1024 * 1024


def zstd(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def zstd_streamed(data):
    """Without a content size in the header, in many blocks and with a checksum."""
    compressor = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return compressor.compress(data) + compressor.flush()


PACKERS = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd,
}
FORMS = [*PACKERS.items(), ("zst", zstd_streamed), ("xz", lambda data: lzma.compress(data, check=lzma.CHECK_NONE))]


def an_image(size=3 * MIB + 12345):
    noise = random.Random(7).randbytes(MIB)
    return (noise + bytes(size))[: size - 4] + b"tail"


@pytest.fixture
def target(tmp_path):
    fd = os.open(tmp_path / "unpacked", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def run(compression, compressed, fd, limit=100 * MIB, min_free=0):
    return decompress(compression, io.BytesIO(compressed), fd, limit, min_free)


def content(fd):
    return os.pread(fd, 200 * MIB, 0)


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_unpacks_to_the_same_bytes_sparsely(compression, pack, target):
    image = an_image()
    compressed = pack(image)
    assert compression_of(compressed) == compression
    assert run(compression, compressed, target) == len(image)
    assert content(target) == image
    assert os.fstat(target).st_blocks * 512 < 2 * MIB + 64 * 1024


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_several_members_are_one_image(compression, pack, target):
    image = an_image()
    assert run(compression, pack(image[:MIB]) + pack(image[MIB:]), target) == len(image)
    assert content(target) == image


@pytest.mark.parametrize(("compression", "pack"), FORMS)
@pytest.mark.parametrize("cut", [1, 7, 1000, 500_000])
def test_an_early_end_is_corrupt(compression, pack, cut, target):
    compressed = pack(an_image())
    with pytest.raises(CorruptImageError, match="cannot be unpacked"):
        run(compression, compressed[:-cut], target)


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_a_flipped_byte_is_corrupt_or_changes_nothing(compression, pack, target):
    image = an_image()
    compressed = bytearray(pack(image))
    compressed[len(compressed) // 2] ^= 0xFF
    try:
        size = run(compression, bytes(compressed), target)
    except CorruptImageError:
        return
    # xz without check and zstd without checksum cannot tell; the image's own digest does.
    assert size <= 100 * MIB


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_a_bomb_stops_at_the_limit(compression, pack, target):
    compressed = pack(bytes(16 * MIB))
    with pytest.raises(ImageTooLargeError, match="unpacks to more than"):
        run(compression, compressed, target, limit=4 * MIB)
    assert os.fstat(target).st_size <= 4 * MIB


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_what_follows_the_last_member_is_not_passed_over(compression, pack, target):
    compressed = pack(an_image())
    assert run(compression, compressed + pack(b"more"), target) == len(an_image()) + 4
    with pytest.raises(CorruptImageError):
        run(compression, compressed + b"of nobody", target)


def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(target):
    compressed = lzma.compress(b"x" * 1000, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1024 * MIB}])
    with pytest.raises(CorruptImageError, match=r"[Mm]emory"):
        run("xz", compressed, target)


def test_a_zstd_window_of_gigabytes_is_refused(target):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    compressed = compressor.compress(an_image()) + compressor.flush()
    with pytest.raises(CorruptImageError, match=r"memory|window|Frame"):
        run("zst", compressed, target)


def test_free_space_is_left(target):
    with pytest.raises(CacheFullError):
        run("gz", gzip.compress(an_image()), target, min_free=2**62)


@pytest.mark.parametrize(("compression", "pack"), FORMS)
def test_the_beginning_is_seen_before_the_rest_is_there(compression, pack):
    image = random.Random(3).randbytes(2 * MIB)
    compressed = pack(image)
    beginning = beginning_of(compression, compressed[: len(compressed) * 3 // 4], 4096)
    assert beginning == image[: len(beginning)]
    assert len(beginning) == 4096


def test_plain_bytes_are_no_compression():
    assert compression_of(b"QFI\xfb" + bytes(100)) is None
    assert compression_of(b"") is None


@given(st.lists(st.binary(max_size=300_000), min_size=1, max_size=4), st.integers(1, 70_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_frames_end_where_zstd_ends_them(parts, piece, checksum):
    compressed = b"".join(zstd(part, write_checksum=checksum) for part in parts)
    frames = ZstdFrames()
    for start in range(0, len(compressed), piece):
        frames.feed(compressed[start : start + piece])
    assert frames.at_boundary
    read_ahead = ZstdFrames()
    read_ahead.feed(compressed[:-1])
    assert not read_ahead.at_boundary


# --- many members, and nothing in them ----------------------------------------------------------------


def gz_member(content=b"", name=b"", blocks=b""):
    """A member with a name and with ``blocks`` before its content."""
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
def test_a_gib_of_pbzip2_has_1190_streams(compression, target):
    """More members than Python's stack has room for; each as pbzip2, pixz or bgzip make them."""
    compressed = PACKERS[compression](b"x" * 900)
    assert run(compression, compressed * 3000, target) == 3000 * 900
    assert beginning_of(compression, compressed * 3000, 5000) == b"x" * 5000


EMPTY_FRAME = zstd(b"")
WITHOUT_END = {
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
    """As trio.Cancelled, no Exception."""


@pytest.mark.parametrize("kind", WITHOUT_END)
def test_a_cancel_is_heard_while_nothing_comes(kind, target):
    """After each piece of the input, though no byte of output ever comes."""
    compression, piece = WITHOUT_END[kind]
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


@pytest.mark.parametrize("kind", WITHOUT_END)
def test_nothing_without_end_is_an_empty_image(kind, target):
    compression, piece = WITHOUT_END[kind]
    assert run(compression, piece * (1 + 200_000 // len(piece)), target) == 0


# --- errors with a reason -----------------------------------------------------------------------------


@pytest.mark.parametrize("compression", PACKERS)
def test_a_full_disk_is_said_to_be_full(compression):
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(CacheFullError, match="no room to unpack") as caught:
        run(compression, PACKERS[compression](an_image()), full)
    assert caught.value.temporary
    os.close(full)


def test_a_disk_that_fails_is_not_the_images_fault(tmp_path):
    (tmp_path / "file").touch()
    unwritable = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(CacheError, match="cannot be written to the cache: Bad file descriptor"):
        run("gz", gzip.compress(an_image()), unwritable)
    os.close(unwritable)


def test_a_source_that_fails_is_told_as_it_is(target):
    class Broken(io.RawIOBase):
        def read(self, _size=-1, /):
            raise OSError(5, "Input/output error")

    for compression in PACKERS:
        with pytest.raises(OSError, match="Input/output error"):
            decompress(compression, Broken(), target, MIB, 0)


def test_a_long_gzip_header_is_read_and_one_without_end_refused(target):
    image = an_image()
    compressed = gz_member(image, b"n" * 60_000)
    assert run("gz", compressed, target) == len(image)
    assert content(target) == image
    for long in (gz_member(image, b"n" * 5 * MIB), gz_member()[:10] + b"n" * 200_000):
        with pytest.raises(CorruptImageError, match="header is longer than 64 KiB"):
            run("gz", long, target)


HEADERS = [(0, b""), (1, b""), (2, b"cc"), (4, b"\3\0abc"), (8, b"name\0"), (16, b"comment\0"), (31, b"\1\0xn\0c\0cc")]


@pytest.mark.parametrize(("flags", "fields"), HEADERS)
def test_gzip_headers_of_every_kind(flags, fields):
    header = bytes([31, 139, 8, flags, 0, 0, 0, 0, 0, 3]) + fields
    assert gzip_header_length(header + b"body") == len(header)
    assert [gzip_header_length(header[:cut]) for cut in range(len(header))] == [None] * len(header)


def test_too_little_memory_is_said():
    """Address space for Python and little more; the dictionary alone takes 64 MiB."""
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
    assert "the host has not enough memory to decompress the image" in done.stderr
