"""The hostile and broken images: how to make each file, and the error with which its job must fail.

Hostile servers and urls are in ``test_servers``.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import zstandard

from tests.hostile import forge
from tests.hostile.forge import CLUSTER, COMPRESSED, COPIED, MIB, SECRET, Workshop, with_entry, with_fields

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 2**30
EVERY = ("native", "qemu-img")
# Images that are rejected before conversion are tried with one converter only.
ONE = ("native",)
DATA_FILE = 0x44415441


@dataclass(frozen=True)
class Case:
    """One hostile image. ``words`` is a pattern for the job's error, ``converters`` are those to try it with."""

    name: str
    make: Callable[[Workshop], bytes]
    words: str
    declared: str = "qcow2"
    converters: tuple[str, ...] = EVERY


def backed(name: str) -> Callable[[Workshop], bytes]:
    """Make a qcow2 image with that backing file (SECRET: a file of the host)."""

    def make(shop: Workshop) -> bytes:
        where = name.replace("SECRET", str(shop.secret))
        return shop.create("-u", "-f", "qcow2", "-b", where, "-F", "raw", "IMAGE", "1M")

    return make


def data_file(name: str, *, bit: bool = True) -> Callable[[Workshop], bytes]:
    """Make a qcow2 image with that external data file."""

    def make(shop: Workshop) -> bytes:
        where = name.replace("SECRET", str(shop.secret)).encode()
        return forge.with_extension(shop.qcow2(), DATA_FILE, where, incompatible=4 if bit else 0)

    return make


def header(**fields: int) -> Callable[[Workshop], bytes]:
    return lambda shop: with_fields(shop.qcow2(), **fields)


def entry(level: int, value: int) -> Callable[[Workshop], bytes]:
    return lambda shop: with_entry(shop.qcow2(), level, value)


def bomb(pack: Callable[[bytes], bytes]) -> Callable[[Workshop], bytes]:
    """Make more than 1 GiB of zeros, compressed in members of 64 MiB."""
    return lambda _shop: pack(bytes(64 * MIB)) * 17


def zst_with_window(data: bytes, log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def tar(shop: Workshop, *names: str) -> bytes:
    return forge.tar_of(dict.fromkeys(names, noise(shop)))


def zipped(shop: Workshop, *names: str) -> bytes:
    return forge.zip_of(dict.fromkeys(names, noise(shop)))


def tar_of_link(shop: Workshop) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        header = tarfile.TarInfo("disk.raw")
        header.type, header.linkname = tarfile.SYMTYPE, str(shop.secret)
        archive.addfile(header)
    return made.getvalue()


def tar_bomb() -> bytes:
    """Return a tar archive with a sparse file of 1 EiB, in GNU's old format."""
    header = tarfile.TarInfo("disk.raw")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"\x80" + (2**60).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def noise(shop: Workshop) -> bytes:
    return shop.raw.read_bytes()


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def vmdk_naming_a_file(shop: Workshop) -> bytes:
    """Return a sparse vmdk whose descriptor names a file of the host as an extent (CVE-2022-47951)."""
    image = bytearray(shop.convert("vmdk", "-o", "subformat=monolithicSparse"))
    at, end = image.index(b"RW 2048 SPARSE"), image.index(b"\n", image.index(b"RW 2048 SPARSE"))
    line = f'RW 2048 FLAT "{shop.secret}" 0'.encode()
    rest = bytes(image[end : image.index(b"\0", end)])
    image[at : at + len(line + rest)] = line + rest
    return bytes(image)


def vmdk_text(shop: Workshop) -> bytes:
    text = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    return (text + f'RW 2048 FLAT "{shop.secret}" 0\n').encode().ljust(CLUSTER, b"\0")


def iso_and_qcow2(shop: Workshop) -> bytes:
    disk = bytearray(shop.qcow2())
    disk[32768:32774] = b"\x01CD001"
    return bytes(disk)


NBD = json.dumps({"driver": "nbd", "server.type": "inet", "server.host": "127.0.0.1", "server.port": "10809"})
FILE = json.dumps({"driver": "raw", "file.driver": "file", "file.filename": "SECRET"})

REACHING_ELSEWHERE = [
    Case("backing-file", backed("SECRET"), "it has a backing file"),
    Case("backing-relative", backed("secret-of-the-host"), "it has a backing file"),
    Case("backing-json", backed("json:" + FILE), "it has a backing file"),
    Case("backing-json-nbd", backed("json:" + NBD), "it has a backing file"),
    Case("backing-nbd", backed("nbd://127.0.0.1:10809/x"), "it has a backing file"),
    Case("backing-ssh", backed("ssh://root@127.0.0.1/etc/passwd"), "it has a backing file"),
    Case("backing-nowhere", header(backing_at=2**60, backing_length=1000), "it has a backing file"),
    Case("data-file", data_file("SECRET"), "external file"),
    Case("data-file-json", data_file("json:" + FILE), "external file"),
    Case("data-file-nbd", data_file("nbd://127.0.0.1:10809/x"), "external file"),
    Case("data-file-without-name", header(incompatible=4), "external file"),
    # QEMU ignores the name if the bit is not set; the converters would not follow it either.
    Case("data-file-without-bit", data_file("SECRET", bit=False), "external data file", converters=ONE),
    Case("vmdk-extent", vmdk_naming_a_file, "descriptor names other files", "vmdk"),
    Case("vmdk-text", vmdk_text, "vmdk", "vmdk"),
    Case("vmdk-text-as-qcow2", vmdk_text, "declared as qcow2|unsafe", "qcow2"),
    Case("vmdk-flat", lambda shop: shop.convert("vmdk", "-o", "subformat=monolithicFlat"), "vmdk", "vmdk"),
    Case("vmdk-pieces", lambda shop: shop.convert("vmdk", "-o", "subformat=twoGbMaxExtentSparse"), "vmdk", "vmdk"),
]

CORNERS = [
    Case("extended-l2", lambda shop: shop.create("-f", "qcow2", "-o", "extended_l2=on", "IMAGE", "1M"),
         "has extended L2 entries, which are not read"),
    Case("unknown-bit", header(incompatible=1 << 63), "unsupported features"),
    Case("unknown-compression", header(incompatible=8, compression=7), "compression|Unknown"),
    Case("version-1", header(version=1), "qcow version 1, which is not read"),
    Case("version-4", header(version=4), "unsupported features"),
    Case("dirty", header(incompatible=1), "not closed by its last writer"),
    Case("corrupt", header(incompatible=2), "marked as corrupt"),
    Case("l1-over-32-mib", header(l1_entries=2**22 + 1), "L1 table|too large"),
    Case("l1-without-end", header(l1_entries=2**32 - 1), "L1 table|too large"),
    Case("l1-past-the-end", header(l1_at=2**40), "L1 table|cannot be read|inconsistent"),
    Case("l1-too-short", header(l1_entries=0), "L1 table|cannot be read"),
    Case("refcounts-over-8-mib", header(refcount_clusters=129), "refcount table|Reference count"),
    Case("refcounts-past-the-end", header(refcounts_at=2**50), "refcount table|refcount"),
    Case("refcount-bits", header(refcount_order=7), "reference count|[Rr]efcount|Reference count"),
    Case("clusters-of-256", header(cluster_bits=8), "[Cc]luster"),
    Case("clusters-of-4-mib", header(cluster_bits=22), "[Cc]luster"),
    Case("clusters-of-1", header(cluster_bits=0), "[Cc]luster"),
    Case("clusters-beyond-64-bits", header(cluster_bits=2**32 - 1), "[Cc]luster"),
    Case("snapshots", header(snapshots=65537, snapshots_at=CLUSTER), "[Ss]napshot"),
    Case("snapshots-past-the-end", header(snapshots=65536, snapshots_at=2**40), "snapshot|too long|cannot be read"),
    Case("one-table-for-all", lambda _shop: forge.one_table_for_all(), "same L2 table|inconsistent|cannot be read"),
    Case("l2-past-the-end", entry(1, 2**40 | COPIED), "outside the file|inconsistent|truncated"),
    Case("l2-unaligned", entry(1, CLUSTER + 512 | COPIED), "outside the file|inconsistent|cannot be read"),
    Case("cluster-past-the-end", entry(2, 2**40 | COPIED), "truncated"),
    Case("cluster-unaligned", entry(2, 6 * CLUSTER + 512 | COPIED), "start of a cluster|inconsistent|cannot be read"),
    Case("cluster-in-the-header", entry(2, COMPRESSED | 3 << 54 | 512), "outside the file|inconsistent|cannot be read"),
    Case("header-of-8-bytes", header(header_length=8), "header"),
    Case("header-of-103-bytes", header(header_length=103), "header"),
    Case("header-of-2-gib", header(header_length=2**31), "header"),
]  # fmt: skip

SIZES = [
    Case("larger-than-the-volume", lambda shop: shop.create("-f", "qcow2", "IMAGE", "2G"), "ask for 2 GiB"),
    Case("size-0", header(size=0), "the image is empty"),
    Case("size-1000", header(size=1000), "multiple of 512|ambiguous"),
    Case("size-2-63", header(size=2**63), "needs 9223372036854775808 bytes"),
    Case("size-2-64", header(size=2**64 - 512), "needs 18446744073709551104 bytes"),
    Case("raw-larger-than-the-volume", lambda _shop: gz(bytes(GIB + 512)), "ask for 2 GiB", "raw"),
]

CLUSTERS = [
    Case(
        "cluster-bomb-zlib",
        lambda shop: forge.with_first_cluster(shop.qcow2(), deflated(bytes(256 * MIB))),
        "exactly one cluster|inconsistent|cannot be read",
    ),
    Case(
        "cluster-bomb-zstd",
        lambda shop: forge.with_first_cluster(shop.qcow2("-c", "-o", "compression_type=zstd"), zst(bytes(256 * MIB))),
        "exactly one cluster|inconsistent|cannot be read",
    ),
    Case(
        "cluster-of-garbage",
        lambda shop: forge.with_first_cluster(shop.qcow2(), b"\xff" * 3000),
        "exactly one cluster|inconsistent|cannot be read",
    ),
    Case("ends-in-the-middle", lambda shop: shop.qcow2()[: 8 * CLUSTER], "truncated|inconsistent"),
    Case("ends-in-the-header", lambda shop: shop.qcow2()[:90], "header|declared as qcow2"),
]

PACKED = [
    Case("bomb-gz", bomb(gz), "decompresses to more than", "raw"),
    Case("bomb-xz", bomb(xz), "decompresses to more than", "raw"),
    Case("bomb-zst", bomb(zst), "decompresses to more than", "raw"),
    Case("bomb-bz2", bomb(bz2.compress), "decompresses to more than", "raw"),
    Case("bomb-in-one-piece", lambda _shop: gz(bytes(GIB + 513)), "decompresses to more than", "raw"),
    Case("bomb-as-qcow2", lambda shop: gz(shop.qcow2()) + gz(bytes(64 * MIB)) * 20, "decompresses to more than"),
    Case("xz-that-wants-4-gib",
         lambda shop: forge.xz_with_dictionary(noise(shop), 40), "cannot be decompressed", "raw"),
    Case("xz-that-wants-256-mib",
         lambda shop: forge.xz_with_dictionary(noise(shop), 32), "cannot be decompressed", "raw"),
    Case("zst-that-wants-2-gib", lambda _shop: forge.zstd_with_window(31), "cannot be decompressed", "raw"),
    Case("zst-that-wants-256-mib", lambda _shop: zst_with_window(bytes(MIB), 28), "cannot be decompressed", "raw"),
    # These use all the memory that decompression may use.
    Case("bomb-xz-64-mib", bomb(lambda data: forge.xz_with_dictionary(data, 28)), "decompresses to more than", "raw"),
    Case("bomb-zst-128-mib", bomb(lambda data: zst_with_window(data, 27)), "decompresses to more than", "raw"),
    Case("cut-gz", lambda shop: gz(noise(shop))[:-50], "cannot be decompressed", "raw"),
    Case("cut-xz", lambda shop: xz(noise(shop))[:-50], "cannot be decompressed", "raw"),
    Case("cut-zst", lambda shop: zst(noise(shop))[:-50], "cannot be decompressed", "raw"),
    Case("cut-bz2", lambda shop: bz2.compress(noise(shop))[:-50], "cannot be decompressed", "raw"),
    Case("half-a-member-after-gz", lambda shop: gz(noise(shop)) + gz(SECRET)[:9], "cannot be decompressed", "raw"),
    Case("garbage-after-xz", lambda shop: xz(noise(shop)) + SECRET * 99, "cannot be decompressed", "raw"),
    Case("garbage-after-zst", lambda shop: zst(noise(shop)) + SECRET * 99, "cannot be decompressed", "raw"),
    Case("garbage-after-bz2", lambda shop: bz2.compress(noise(shop)) + SECRET * 99, "cannot be decompressed", "raw"),
    Case("packed-twice", lambda shop: gz(xz(noise(shop))), "compressed twice", "raw"),
    Case("backing-file-packed", lambda shop: gz(backed("SECRET")(shop)), "it has a backing file"),
    Case("tar-as-qcow2", lambda shop: tar(shop, "a"), "declared as qcow2 but is raw"),
    Case("tar-of-two", lambda shop: tar(shop, "a", "b"), "more than one disk image", "raw"),
    Case("tar-gz-of-two", lambda shop: gz(tar(shop, "a", "b")), "more than one disk image", "raw"),
    Case("tar-with-path", lambda shop: tar(shop, "../../etc/shadow"), "unsafe path", "raw"),
    Case("tar-of-a-link", tar_of_link, "contains a link", "raw"),
    Case("tar-in-tar", lambda shop: forge.tar_of({"a.tar": tar(shop, "b")}), "archive inside another archive", "raw"),
    Case("tar-bomb", lambda _shop: tar_bomb(), "decompresses to more than", "raw"),
    Case("tar-cut", lambda shop: tar(shop, "a")[:99_999], "cannot be extracted", "raw"),
    Case("zip-of-two", lambda shop: zipped(shop, "a", "b"), "more than one file", "raw"),
    Case("zip-with-path", lambda shop: zipped(shop, "/etc/shadow"), "unsafe path", "raw"),
    Case("zip-cut", lambda shop: zipped(shop, "a")[:-30], "cannot be extracted", "raw"),
    Case("zip-backing-file", lambda shop: forge.zip_of({"disk": backed("SECRET")(shop)}), "it has a backing file"),
    Case("7z", lambda shop: b"7z\xbc\xaf\x27\x1c\0\4" + noise(shop), "this is a 7z archive", "raw"),
    Case("html", lambda _shop: b"<!DOCTYPE html><p>Sign in</p>\n" * 99, "this is an HTML page", "raw"),
    Case("magic-alone", lambda _shop: b"\x1f\x8b\x08", "cannot be decompressed", "raw"),
]  # fmt: skip

ENCRYPTED = [
    Case("luks-as-raw", lambda _shop: forge.luks(), "LUKS", "raw"),
    Case("luks-as-qcow2", lambda _shop: forge.luks(), "LUKS"),
    Case("luks-in-qcow2", lambda shop: forge.encrypted(shop.qcow2()), "encrypted"),
    Case("aes-in-qcow2", header(crypt=1), "encrypted"),
]


def _confused() -> list[Case]:
    """Return images whose format differs from the declared one."""
    cases = [
        Case("raw-as-qcow2", noise, "declared as qcow2 but is raw"),
        Case("qcow2-as-raw", lambda shop: shop.qcow2(), "declared as raw but is qcow2", "raw"),
        Case("qcow2-as-vmdk", lambda shop: shop.qcow2(), "declared as vmdk but is qcow2", "vmdk"),
        Case("iso-and-qcow2", iso_and_qcow2, "read as iso and as qcow2"),
        Case("iso-and-qcow2-as-raw", iso_and_qcow2, "read as iso and as qcow2", "raw"),
    ]
    for kind in ("vpc", "vhdx", "vdi", "vmdk"):
        for declared in ("raw", "qcow2"):
            words = f"declared as {declared} but is {kind}"
            cases.append(Case(f"{kind}-as-{declared}", lambda shop, kind=kind: shop.convert(kind), words, declared))
    cases.append(Case("qed-as-raw", lambda shop: shop.create("-f", "qed", "IMAGE", "1M"), "qed", "raw"))
    cases.append(Case("qed-as-qcow2", lambda shop: shop.create("-f", "qed", "IMAGE", "1M"), "qed"))
    return cases


SHORT = [
    Case("empty", lambda _shop: b"", "the image is empty", "raw"),
    Case("empty-as-qcow2", lambda _shop: b"", "declared as qcow2 but is raw"),
    Case("short-as-qcow2", lambda _shop: b"QFI\xfb", "declared as qcow2 but is raw"),
    Case("header-alone", lambda shop: shop.qcow2()[:512], "header|truncated|beyond|cannot be read"),
]

CASES = [*REACHING_ELSEWHERE, *CORNERS, *SIZES, *CLUSTERS]
CASES += [replace(case, converters=ONE) for case in (*PACKED, *ENCRYPTED, *_confused(), *SHORT)]
