"""The qcow2 header, parsed strictly: anything but plain data in this one file is rejected.

Pure parsing. The facts are from QEMU's docs/interop/qcow2.txt, the limits are those of QEMU's reader.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from provisioner.contracts.errors import CorruptImageError, ImageFormatError, UnsafeImageError

if TYPE_CHECKING:
    from lvp_convert_native.image_file import ImageFile

MAGIC = b"QFI\xfb"
# magic, version, backing offset and size, cluster bits, virtual size, crypt method, L1 entries and offset,
# refcount table offset and clusters, snapshots and their offset
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
# incompatible, compatible and autoclear bits, refcount order, header length
_V3 = struct.Struct(">QQQII")
_V3_LENGTH = _V2.size + _V3.size
_COMPRESSION_AT = 104

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))

_EXTENSION = struct.Struct(">II")
_EXT_END = 0x00000000
_EXT_DATA_FILE = 0x44415441
_EXT_ENCRYPTION = 0x0537BE77

MAX_L1_BYTES = 32 * 1024**2
MAX_REFCOUNT_TABLE_BYTES = 8 * 1024**2
MAX_SNAPSHOTS = 65536
# Offsets in L1 and L2 entries have 56 bits.
MAX_VIRTUAL_SIZE = 1 << 56


class Compression(IntEnum):
    """The compression of compressed clusters."""

    ZLIB = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Header:
    """The header fields needed to read the image. ``size`` is the virtual size, ``file_size`` the size of the file."""

    version: int
    cluster_bits: int
    size: int
    l1_offset: int
    compression: Compression
    file_size: int

    @property
    def cluster_size(self) -> int:
        """Return the size of a cluster in bytes."""
        return 1 << self.cluster_bits

    @property
    def table_span(self) -> int:
        """Return how many bytes of the disk one L2 table maps."""
        return 1 << (2 * self.cluster_bits - 3)

    @property
    def l1_entries(self) -> int:
        """Return how many L1 entries the virtual size needs; the table may have more."""
        return -(-self.size // self.table_span)


def read_header(image: ImageFile) -> Header:
    """Read and check the header of ``image``, waiting for it."""
    start = image.read(0, min(_V2.size, image.size))
    cluster_size = 1 << _cluster_bits(start)
    return parse_header(image.read(0, min(cluster_size, image.size)), image.size)


def _cluster_bits(start: bytes) -> int:
    if start[:4] != MAGIC:
        raise ImageFormatError("the image is not qcow2: it does not begin with a qcow2 header")
    if len(start) < _V2.size:
        raise CorruptImageError("the qcow2 image ends inside its header")
    version, cluster_bits = struct.unpack_from(">I", start, 4)[0], struct.unpack_from(">I", start, 20)[0]
    if version not in {2, 3}:
        raise UnsafeImageError(f"the qcow2 image has version {version}; only versions 2 and 3 are supported")
    if not 9 <= cluster_bits <= 21:
        raise CorruptImageError(f"the qcow2 header declares clusters of 2^{cluster_bits} bytes; valid are 2^9 to 2^21")
    return int(cluster_bits)


def parse_header(first: bytes, file_size: int) -> Header:
    """Check the first cluster of a file (or the whole file, if it is shorter).

    Raises ImageFormatError, UnsafeImageError or CorruptImageError.
    """
    bits = _cluster_bits(first)
    fields = _V2.unpack_from(first)
    version, backing, size, crypt, l1_count, l1_offset = (fields[i] for i in (1, 2, 5, 6, 7, 8))
    if backing:
        raise UnsafeImageError("the qcow2 image has a backing file; flatten it with qemu-img convert")
    if crypt:
        raise UnsafeImageError("the qcow2 image is encrypted")
    _check_size(size)
    length, compression = (_V2.size, Compression.ZLIB) if version == 2 else _version_3(first, 1 << bits)
    _check_extensions(first, length, 1 << bits)
    header = Header(version, bits, size, l1_offset, compression, file_size)
    _check_l1(header, l1_count)
    _check_unread_tables(header, *fields[9:13])
    return header


def _check_size(size: int) -> None:
    if size == 0 or size % 512:
        raise CorruptImageError(f"the qcow2 header declares a disk of {size} bytes, not a positive multiple of 512")
    if size > MAX_VIRTUAL_SIZE:
        raise CorruptImageError(f"the qcow2 header declares a disk of {size} bytes, more than the format allows")


def _version_3(first: bytes, cluster_size: int) -> tuple[int, Compression]:
    """Return the header length and compression type of a version 3 image."""
    if len(first) < _V3_LENGTH:
        raise CorruptImageError("the qcow2 image ends inside its header")
    incompatible, _, _, refcount_order, length = _V3.unpack_from(first, _V2.size)
    _check_features(incompatible)
    if not _V3_LENGTH <= length <= cluster_size or length % 8:
        raise CorruptImageError(
            f"the qcow2 header declares a length of {length} bytes; it must be between {_V3_LENGTH} and one cluster"
        )
    if length > len(first):
        raise CorruptImageError("the qcow2 image ends inside its header")
    if refcount_order > 6:
        raise CorruptImageError(f"the qcow2 header declares reference counts of 2^{refcount_order} bits, more than 2^6")
    kind = first[_COMPRESSION_AT] if length > _COMPRESSION_AT else 0
    if kind not in set(Compression):
        raise UnsafeImageError(f"the qcow2 image has the unknown compression type {kind}")
    if bool(incompatible & _COMPRESSION) != (kind != Compression.ZLIB):
        raise CorruptImageError("the qcow2 header's compression type and its feature bit contradict each other")
    return length, Compression(kind)


def _check_features(incompatible: int) -> None:
    if incompatible & _DATA_FILE:
        raise UnsafeImageError("the qcow2 image keeps its data in an external file")
    if incompatible & _EXTENDED_L2:
        raise UnsafeImageError(
            "the qcow2 image has extended L2 entries, which are not read; "
            "convert it: qemu-img convert -f qcow2 -O qcow2 OLD NEW"
        )
    if incompatible & ~(_DIRTY | _CORRUPT | _COMPRESSION):
        raise UnsafeImageError(f"the qcow2 image has unknown features (incompatible bits {incompatible:#x})")
    if incompatible & _CORRUPT:
        raise CorruptImageError("the qcow2 image is marked corrupt; repair it with qemu-img check -r all")
    # In a dirty image only the reference counts are stale, and they are not read here. But its writer died or
    # is still writing, so the data may be incomplete.
    if incompatible & _DIRTY:
        raise CorruptImageError(
            "the qcow2 image was not closed by its last writer; repair it with qemu-img check -r all"
        )


def _check_extensions(first: bytes, offset: int, cluster_size: int) -> None:
    """Walk the header extensions. Unknown ones are ignored; a data file or encryption is always rejected."""
    while offset + _EXTENSION.size <= cluster_size:
        if offset + _EXTENSION.size > len(first):
            raise CorruptImageError("the qcow2 image ends inside its header")
        kind, length = _EXTENSION.unpack_from(first, offset)
        offset += _EXTENSION.size
        if kind == _EXT_END:
            return
        if length > cluster_size - offset:
            raise CorruptImageError(f"a qcow2 header extension declares {length} bytes and exceeds the cluster")
        if kind == _EXT_DATA_FILE:
            raise UnsafeImageError("the qcow2 image names an external data file")
        if kind == _EXT_ENCRYPTION:
            raise UnsafeImageError("the qcow2 image is encrypted")
        offset += -(-length // 8) * 8


def _check_l1(header: Header, count: int) -> None:
    if count * 8 > MAX_L1_BYTES:
        raise CorruptImageError(f"the qcow2 header declares an L1 table of {count} entries, over the limit of 32 MiB")
    if count < header.l1_entries:
        raise CorruptImageError(f"the qcow2 L1 table has {count} entries, but the disk needs {header.l1_entries}")
    _check_table("L1", header, header.l1_offset, count * 8)


def _check_unread_tables(
    header: Header, refcounts: int, refcount_clusters: int, snapshots: int, snapshots_offset: int
) -> None:
    """Check reference counts and snapshots, although they are not read: if they are wrong, the rest may be too."""
    if refcount_clusters * header.cluster_size > MAX_REFCOUNT_TABLE_BYTES:
        raise CorruptImageError("the qcow2 header declares a refcount table over the limit of 8 MiB")
    if snapshots > MAX_SNAPSHOTS:
        raise CorruptImageError(f"the qcow2 header declares {snapshots} snapshots, over the limit of {MAX_SNAPSHOTS}")
    _check_table("refcount", header, refcounts, refcount_clusters * header.cluster_size)
    if snapshots:
        _check_table("snapshot", header, snapshots_offset, 40 * snapshots)


def _check_table(what: str, header: Header, offset: int, length: int) -> None:
    if offset % header.cluster_size or offset == 0:
        raise CorruptImageError(f"the qcow2 {what} table is at byte {offset}, which is not the start of a cluster")
    if offset + length > header.file_size:
        raise CorruptImageError(f"the qcow2 {what} table extends beyond the end of the file")
