"""The qcow2 header: what is read, what is refused, and with which sentence."""

import struct

import pytest

from lvp_convert_native.qcow2_header import Compression, parse_header
from provisioner.contracts import GIB
from provisioner.contracts.errors import CorruptImageError, ImageFormatError, UnsafeImageError

FILE_SIZE = 1024**2
# name: (format, offset, a good value)
FIELDS = {
    "magic": ("4s", 0, b"QFI\xfb"),
    "version": ("I", 4, 3),
    "backing_offset": ("Q", 8, 0),
    "backing_size": ("I", 16, 0),
    "cluster_bits": ("I", 20, 16),
    "size": ("Q", 24, GIB),
    "crypt": ("I", 32, 0),
    "l1_entries": ("I", 36, 2),
    "l1_offset": ("Q", 40, 3 * 65536),
    "refcount_offset": ("Q", 48, 65536),
    "refcount_clusters": ("I", 56, 1),
    "snapshots": ("I", 60, 0),
    "snapshots_offset": ("Q", 64, 0),
    "incompatible": ("Q", 72, 0),
    "compatible": ("Q", 80, 0),
    "autoclear": ("Q", 88, 0),
    "refcount_order": ("I", 96, 4),
    "header_length": ("I", 100, 112),
    "compression": ("B", 104, 0),
}


def a_header(extensions=b"", **changes):
    first = bytearray(65536)
    for name, (kind, at, good) in FIELDS.items():
        struct.pack_into(">" + kind, first, at, changes.pop(name, good))
    assert not changes
    first[112 : 112 + len(extensions)] = extensions
    return bytes(first)


def test_a_good_header():
    header = parse_header(a_header(), FILE_SIZE)
    assert (header.version, header.cluster_size, header.size, header.l1_entries) == (3, 65536, GIB, 2)
    assert header.compression is Compression.ZLIB


def test_version_2_ignores_later_fields():
    first = a_header(version=2)[:72] + bytes(65536 - 72)
    assert parse_header(first, FILE_SIZE).version == 2


def test_zstd():
    assert parse_header(a_header(incompatible=8, compression=1), FILE_SIZE).compression is Compression.ZSTD


@pytest.mark.parametrize("kind", [0xE2792ACA, 0x6803F857, 0x23852875, 0x12345678])
def test_harmless_extensions_are_ignored(kind):
    parse_header(a_header(struct.pack(">II8sII", kind, 5, b"qcow2", 0, 0)), FILE_SIZE)


REFUSED = [
    ({"magic": b"QED\0"}, ImageFormatError, "not qcow2"),
    ({"version": 1}, UnsafeImageError, "version 1"),
    ({"version": 4}, UnsafeImageError, "version 4"),
    ({"backing_offset": 200, "backing_size": 11}, UnsafeImageError, "backing file"),
    ({"cluster_bits": 8}, CorruptImageError, "clusters"),
    ({"cluster_bits": 22}, CorruptImageError, "clusters"),
    ({"cluster_bits": 2**32 - 1}, CorruptImageError, "clusters"),
    ({"size": 0}, CorruptImageError, "disk of 0 bytes"),
    ({"size": 513}, CorruptImageError, "multiple of 512"),
    ({"size": 2**63}, CorruptImageError, "more than the format"),
    ({"size": 2**64 - 512}, CorruptImageError, "more than the format"),
    ({"size": 2 * GIB}, CorruptImageError, "L1 table has 2 entries"),
    ({"crypt": 1}, UnsafeImageError, "encrypted"),
    ({"crypt": 2}, UnsafeImageError, "encrypted"),
    ({"l1_entries": 2**22 + 1}, CorruptImageError, "32 MiB"),
    ({"l1_entries": 2**32 - 1}, CorruptImageError, "32 MiB"),
    ({"l1_entries": 0}, CorruptImageError, "L1 table has 0"),
    ({"l1_offset": 0}, CorruptImageError, "L1 table is at byte 0"),
    ({"l1_offset": 100}, CorruptImageError, "not the start of a cluster"),
    ({"l1_offset": FILE_SIZE}, CorruptImageError, "end of the file"),
    ({"l1_offset": 2**64 - 65536}, CorruptImageError, "end of the file"),
    ({"refcount_clusters": 129}, CorruptImageError, "8 MiB"),
    ({"refcount_clusters": 2**32 - 1}, CorruptImageError, "8 MiB"),
    ({"refcount_offset": 2**63}, CorruptImageError, "end of the file"),
    ({"snapshots": 65537}, CorruptImageError, "snapshots"),
    ({"snapshots": 1, "snapshots_offset": 2**63}, CorruptImageError, "end of the file"),
    ({"incompatible": 1}, CorruptImageError, "not closed"),
    ({"incompatible": 2}, CorruptImageError, "marked corrupt"),
    ({"incompatible": 4}, UnsafeImageError, "external file"),
    ({"incompatible": 8}, CorruptImageError, "contradict"),
    ({"incompatible": 16}, UnsafeImageError, "extended L2"),
    ({"incompatible": 32}, UnsafeImageError, "unknown features"),
    ({"incompatible": 2**63}, UnsafeImageError, "unknown features"),
    ({"refcount_order": 7}, CorruptImageError, "reference counts"),
    ({"header_length": 72}, CorruptImageError, "72 bytes"),
    ({"header_length": 65544}, CorruptImageError, "65544 bytes"),
    ({"header_length": 2**32 - 8}, CorruptImageError, r"length of .* bytes"),
    ({"header_length": 105}, CorruptImageError, "105 bytes"),
    ({"compression": 1}, CorruptImageError, "contradict"),
    ({"compression": 2, "incompatible": 8}, UnsafeImageError, "compression type 2"),
    ({"extensions": struct.pack(">II8s", 0x44415441, 8, b"/etc/sha")}, UnsafeImageError, "external data file"),
    ({"extensions": struct.pack(">II16s", 0x0537BE77, 16, b"")}, UnsafeImageError, "encrypted"),
    ({"extensions": struct.pack(">II", 0x12345678, 2**32 - 1)}, CorruptImageError, "extension"),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED, ids=[f"{next(iter(c))}-{w}" for c, _, w in REFUSED])
def test_invalid_input(changes, error, words):
    with pytest.raises(error, match=words):
        parse_header(a_header(**changes), FILE_SIZE)


@pytest.mark.parametrize("length", [0, 3, 4, 71, 72, 103, 111, 115])
def test_a_header_cut_short(length):
    with pytest.raises((CorruptImageError, ImageFormatError)):
        parse_header(a_header()[:length], length)
