"""Makes hostile images: valid ones by QEMU's tools, then changed in their headers or tables."""

from __future__ import annotations

import io
import lzma
import random
import struct
import subprocess
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIB = 2**20
# Data of the host that must never appear in a volume.
SECRET = b"root:secret-of-the-host:0:0:"
# Offset and width of the fields of a qcow2 header.
FIELDS = {
    "version": (4, ">I"), "backing_at": (8, ">Q"), "backing_length": (16, ">I"), "cluster_bits": (20, ">I"),
    "size": (24, ">Q"), "crypt": (32, ">I"), "l1_entries": (36, ">I"), "l1_at": (40, ">Q"), "refcounts_at": (48, ">Q"),
    "refcount_clusters": (56, ">I"), "snapshots": (60, ">I"), "snapshots_at": (64, ">Q"), "incompatible": (72, ">Q"),
    "refcount_order": (96, ">I"), "header_length": (100, ">I"), "compression": (104, ">B"),
}  # fmt: skip
CLUSTER = 65536
COMPRESSED, COPIED = 1 << 62, 1 << 63


def with_fields(image: bytes, **fields: int) -> bytes:
    """Return a qcow2 image with changed header fields."""
    changed = bytearray(image)
    for name, value in fields.items():
        at, form = FIELDS[name]
        struct.pack_into(form, changed, at, value)
    return bytes(changed)


def with_entry(image: bytes, level: int, entry: int, index: int = 0) -> bytes:
    """Return a qcow2 image with a changed entry in its L1 table or its first L2 table."""
    changed = bytearray(image)
    at = struct.unpack_from(">Q", image, FIELDS["l1_at"][0])[0]
    if level == 2:
        at = struct.unpack_from(">Q", image, at)[0] & 0x00FF_FFFF_FFFF_FE00
    struct.pack_into(">Q", changed, at + 8 * index, entry)
    return bytes(changed)


def with_extension(image: bytes, kind: int, data: bytes, **fields: int) -> bytes:
    """Return a qcow2 image with that header extension only."""
    changed = bytearray(with_fields(image, **fields))
    length = struct.unpack_from(">I", image, FIELDS["header_length"][0])[0]
    changed[length:2048] = struct.pack(">II", kind, len(data)) + data.ljust(2040 - length, b"\0")
    return bytes(changed)


def luks(size: int = MIB) -> bytes:
    """Return a LUKS1 image that QEMU recognizes, with one key slot in use.

    qemu-img cannot make one reliably: it benchmarks key derivation, and fails if the processor-time clock did not
    advance meanwhile.
    """
    key, stripes, material = 64, 4000, -(-64 * 4000 // 4096) * 8  # bytes, pieces, sectors
    head = struct.pack(
        ">6sH32s32s32sII20s32sI40s",
        b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 8 + 8 * material, key, b"d" * 20, b"s" * 32, 1000,
        b"f598a3bb-e91e-407b-a060-4f1c0ddc7d2c",
    )  # fmt: skip
    for slot in range(8):
        state, rounds = (0x00AC71F3, 1000) if slot == 0 else (0x0000DEAD, 0)
        head += struct.pack(">II32sII", state, rounds, b"t" * 32, 8 + slot * material, stripes)
    return head.ljust((8 + 8 * material) * 512 + size, b"\0")


def encrypted(image: bytes) -> bytes:
    """Mark a qcow2 image as encrypted with LUKS; the key slots are appended at its end."""
    start = -(-len(image) // CLUSTER) * CLUSTER
    header = luks(0)
    pointed = with_extension(image, 0x0537BE77, struct.pack(">QQ", start, len(header)), crypt=2)
    return pointed.ljust(start, b"\0") + header.ljust(-(-len(header) // CLUSTER) * CLUSTER, b"\0")


def with_first_cluster(image: bytes, packed: bytes) -> bytes:
    """Return a qcow2 image whose first cluster is compressed: ``packed``, appended at the end of the file."""
    start = -(-len(image) // 512) * 512
    whole = (image.ljust(start, b"\0") + packed).ljust(start + len(packed) + 1024, b"\0")
    return with_entry(whole, 2, COMPRESSED | (len(packed) // 512 + 1) << 54 | start)


def one_table_for_all(gib: int = 1) -> bytes:
    """Return a qcow2 image of half a MiB whose L1 entries all name one L2 table, whose entries all name one cluster."""
    cluster, size = 512, gib * 2**30
    tables = size // (cluster // 8 * cluster)
    l1_at = 2 * cluster
    l2_at = l1_at + -(-tables * 8 // cluster) * cluster
    data_at = l2_at + cluster
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        b"QFI\xfb", 3, 0, 0, 9, size, 0, tables, l1_at, cluster, 1, 0, 0, 0, 0, 0, 4, 104,
    )  # fmt: skip
    return b"".join(
        [
            head.ljust(2 * cluster, b"\0"),
            struct.pack(">Q", l2_at | COPIED) * tables,
            bytes(l2_at - l1_at - 8 * tables),
            struct.pack(">Q", data_at | COPIED) * (cluster // 8),
            b"x" * cluster,
        ]
    )


def xz_with_dictionary(data: bytes, code: int) -> bytes:
    """Return xz data whose block requires a dictionary of the size that ``code`` encodes (40: 4 GiB)."""
    packed = bytearray(lzma.compress(data, preset=0))
    length = (packed[12] + 1) * 4
    assert packed[14] == 0x21, "the filter is LZMA2"
    packed[16] = code
    struct.pack_into("<I", packed, 12 + length - 4, zlib.crc32(packed[12 : 12 + length - 4]))
    return bytes(packed)


def zstd_with_window(log: int) -> bytes:
    """Return a zstd frame with one stored block that requires a window of ``2**log`` bytes."""
    block = b"x" * 1000
    return b"\x28\xb5\x2f\xfd\0" + bytes([(log - 10) << 3]) + (len(block) << 3 | 1).to_bytes(3, "little") + block


@dataclass
class Workshop:
    """A folder to make images in, with a secret file of the host that hostile images try to read."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.secret = self.folder / "secret-of-the-host"
        self.secret.write_bytes(SECRET.ljust(MIB, b"."))
        self.raw = self.folder / "disk.raw"
        noise = random.Random(6)
        self.raw.write_bytes(b"".join(noise.randbytes(1000).ljust(CLUSTER, b"\0") for _ in range(16)))

    def create(self, *arguments: object) -> bytes:
        """Return what ``qemu-img create`` makes; IMAGE in the arguments stands for the file."""
        return self._made("create", "-q", *arguments)

    def convert(self, kind: str, *arguments: object) -> bytes:
        """Return a disk of 1 MiB in that format."""
        return self._made("convert", "-f", "raw", "-O", kind, *arguments, self.raw, "IMAGE")

    def qcow2(self, *options: object) -> bytes:
        """Return a valid qcow2 image."""
        return self.convert("qcow2", *options)

    def _made(self, *arguments: object) -> bytes:
        image = self.folder / "image"
        image.unlink(missing_ok=True)
        words = [str(image) if word == "IMAGE" else str(word) for word in arguments]
        subprocess.run(["qemu-img", *words], check=True, cwd=self.folder)
        return image.read_bytes()


# --- archives -----------------------------------------------------------------------------------------


def tar_of(members: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return made.getvalue()


def zip_of(members: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()
