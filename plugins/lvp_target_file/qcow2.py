"""Metadata of qcow2 files: makes raw data in a file a qcow2 image without moving it, makes overlays, grows images.

A file that is made here has version 3, clusters of 64 KiB, 16-bit references and no internal snapshots. In a wrapped
file, data stays where the raw file has it: cluster N of the disk is cluster N of the file, except for the first one,
whose place the header needs. The tables are at the end. What the raw file has as a hole has no cluster, and reads as
zeros.

QEMU writes to these files later, and foreign files are looked at too: nothing is assumed of a file that is read.
Blocking: call it in a thread. Functions raise OSError.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvp_target_file.disk import opened
from provisioner.contracts import pwrite_all
from provisioner.contracts.errors import ResizeError, TargetError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLUSTER = 65536
_BITS = 16
# Bytes of the disk that one table of the second level covers, and bytes of the file that one block of references does.
_COVERED_BY_TABLE = CLUSTER // 8 * CLUSTER
_COVERED_BY_BLOCK = CLUSTER // 2 * CLUSTER
# In an entry: the cluster has exactly one reference, so it is written to without a copy.
_COPIED = 1 << 63
_MAGIC = b"QFI\xfb"
# Version 3: magic, version, offset and length of the backing file's name, bits of a cluster, size, encryption, entries
# and offset of the table of the first level, offset and clusters of the table of references, snapshots and their
# offset, incompatible, compatible and autoclear features, bits of a reference, length of this header.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_SIZE_AT = 24
_BACKING_FORMAT = 0xE2792ACA
_MAX_BACKING = 1023
_MAX_CLUSTER = 2 * 1024**2
_MAX_ENTRIES = 4 * 1024**2
# Incompatible features that do not matter to a change of the size: another compression.
_HARMLESS = 1 << 3
_BITMAPS = 1 << 0


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself. ``backing`` is the backing file as written there, empty if it has none."""

    version: int
    size: int
    backing: str
    cluster_bits: int
    encryption: int
    table_entries: int
    table_at: int
    snapshots: int
    incompatible: int
    autoclear: int


def read_header(fd: int) -> Header | None:
    """Return the header of an open file, None if it is no qcow2 image."""
    data = os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
    (magic, version, backing_at, backing_size, bits, size, encryption, entries, table_at, _, _, snapshots, _,
     incompatible, _, autoclear, _, _) = _HEADER.unpack(data)  # fmt: skip
    if magic != _MAGIC or version < 2:
        return None
    incompatible, autoclear = (incompatible, autoclear) if version > 2 else (0, 0)
    # QEMU opens no file whose name is elsewhere.
    named = 0 < backing_at <= _MAX_CLUSTER
    backing = os.pread(fd, min(backing_size, _MAX_BACKING), backing_at) if named else b""
    return Header(
        version, size, os.fsdecode(backing), bits, encryption, entries, table_at, snapshots, incompatible, autoclear
    )


def header_of(path: Path) -> Header | None:
    """Return the header of the file at ``path``; None if it is gone or is no qcow2 image."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with opened(path, os.O_RDONLY) as fd:  # waits while ``holders`` has a lease on the file
            return read_header(fd)
    except FileNotFoundError:
        return None


def rounded(size: int) -> int:
    """Return ``size`` as a multiple of the cluster, so that no cluster is used in part."""
    return -(-size // CLUSTER) * CLUSTER


def metadata_bytes(size: int) -> int:
    """Return the most that the tables of a disk of ``size`` bytes take, and the cluster that makes room for the header.

    A table of the second level has 8 bytes for a cluster, a reference 2.
    """
    return CLUSTER * (6 + 2 * (size // _COVERED_BY_TABLE + 1))


def make_overlay(fd: int, size: int, backing: str, backing_format: str) -> None:
    """Make the empty file ``fd`` an image of ``size`` bytes on top of ``backing``, whose format is never guessed."""
    name = os.fsencode(backing)
    if len(name) > _MAX_BACKING:
        raise TargetError(f"a qcow2 file cannot refer to {backing}: the path has more than {_MAX_BACKING} bytes")
    tables = _Tables(0, _table_clusters(size))
    tables.write(fd, array("Q", bytes(8 * tables.entries)), [])
    pwrite_all(fd, _header(size, tables, name, backing_format.encode()), 0)


def wrap(fd: int, size: int, *, whole: bool = False) -> None:
    """Make the raw file ``fd`` an image of the same content. ``size`` is its size, a multiple of the cluster.

    ``whole``: holes get clusters too, because their space is allocated. The header is written last: before, the file is
    as good as a raw one.
    """
    clusters = size // CLUSTER
    runs = [(0, clusters)] if whole else list(_runs(fd, size))
    end, moved = clusters, 0
    if runs and runs[0][0] == 0:
        pwrite_all(fd, os.pread(fd, CLUSTER, 0).ljust(CLUSTER, b"\0"), end * CLUSTER)
        moved, end = end, end + 1
    first_level = array("Q", bytes(8 * _table_clusters(size) * (CLUSTER // 8)))
    for number, table in _second_level(runs, moved):
        pwrite_all(fd, table, end * CLUSTER)
        first_level[number] = end * CLUSTER | _COPIED
        end += 1
    tables = _Tables(end, len(first_level) // (CLUSTER // 8))
    tables.write(fd, first_level, [(max(1, start), stop) for start, stop in runs] + [(clusters, end)])
    os.fsync(fd)
    pwrite_all(fd, _header(size, tables).ljust(CLUSTER, b"\0"), 0)


def grow(fd: int, size: int) -> None:
    """Set the size of the disk, by one write of 8 bytes; the new part has no clusters. Raises ResizeError."""
    header = read_header(fd)
    if header is None or (refusal := why_not_grown(fd, header, size)) is not None:
        raise ResizeError(f"it cannot be grown here: {refusal if header else 'it is no qcow2 file'}; use qemu-img")
    try:
        pwrite_all(fd, struct.pack(">Q", size), _SIZE_AT)
        os.fsync(fd)
    except OSError:
        pwrite_all(fd, struct.pack(">Q", header.size), _SIZE_AT)
        raise


def why_not_grown(fd: int, header: Header, size: int) -> str | None:
    """Return why the image must not be grown by a change of its header alone, or None."""
    if header.version > 3 or header.encryption or header.incompatible & ~_HARMLESS or not _sane(header):
        return "it is encrypted, damaged or has features that are not known here"
    if header.snapshots or header.autoclear & _BITMAPS:
        return "it has internal snapshots or bitmaps"
    covered = 1 << (2 * header.cluster_bits - 3)  # by one entry of the first level
    used, needed = -(-header.size // covered), -(-size // covered)
    if needed > header.table_entries:
        return f"its tables have no room for more than {header.table_entries * covered // 1024**3} GiB"
    if needed > used and any(os.pread(fd, 8 * (needed - used), header.table_at + 8 * used)):
        return "it has data after its end"
    return None


def _sane(header: Header) -> bool:
    return 9 <= header.cluster_bits <= 21 and 0 < header.table_at < 2**62 and header.table_entries <= _MAX_ENTRIES


class _Tables:
    """Where the tables are: the first level, the table of references and its blocks follow each other from ``start``.

    Without data they follow the header.
    """

    def __init__(self, start: int, table_clusters: int) -> None:
        self.start = max(1, start)
        self.entries = table_clusters * (CLUSTER // 8)
        self.first_level_at = self.start * CLUSTER
        self.references_at = self.first_level_at + table_clusters * CLUSTER
        self._end = self.start + table_clusters  # the table of references begins here
        # Room for the file and a tenth more, which is plenty for its own blocks.
        blocks = (self._end + self._end // 10 + 64) * CLUSTER // _COVERED_BY_BLOCK + 2
        self.reference_clusters = -(-blocks * 8 // CLUSTER)

    def write(self, fd: int, first_level: array[int], used: list[tuple[int, int]]) -> None:
        """Write them. ``used``: the ranges of clusters in use, besides the header and what is written here."""
        blocks: dict[int, bytearray] = {}
        for start, stop in [*used, (0, 1)]:
            _mark_used(blocks, start, stop)
        first_block = self._end + self.reference_clusters
        known = -1
        while known != len(blocks):  # they count themselves
            known = len(blocks)
            _mark_used(blocks, self.start, first_block + known)
        references = array("Q", bytes(self.reference_clusters * CLUSTER))
        for at, number in enumerate(sorted(blocks), first_block):
            references[number] = at * CLUSTER
            pwrite_all(fd, bytes(blocks[number]), at * CLUSTER)
        pwrite_all(fd, _big_endian(first_level), self.first_level_at)
        pwrite_all(fd, _big_endian(references), self.references_at)
        os.ftruncate(fd, (first_block + known) * CLUSTER)


def _header(size: int, tables: _Tables, backing: bytes = b"", backing_format: bytes = b"") -> bytes:
    extension = b""
    if backing:
        padded = backing_format.ljust(-(-len(backing_format) // 8) * 8, b"\0")
        extension = struct.pack(">II", _BACKING_FORMAT, len(backing_format)) + padded
    extension += bytes(8)
    backing_at = _HEADER.size + len(extension) if backing else 0
    return (
        _HEADER.pack(
            _MAGIC, 3, backing_at, len(backing), _BITS, size, 0, tables.entries, tables.first_level_at,
            tables.references_at, tables.reference_clusters, 0, 0, 0, 0, 0, 4, _HEADER.size,
        )
        + extension + backing
    )  # fmt: skip


def _table_clusters(size: int) -> int:
    """Return the clusters of the first level: at least one, which covers 4 TiB."""
    return max(1, -(-size // (CLUSTER // 8 * _COVERED_BY_TABLE)))


def _runs(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of clusters that have data, in order, none next to another."""
    start = stop = 0
    for data, hole in _extents(fd, size):
        first, last = data // CLUSTER, -(-hole // CLUSTER)
        if first <= stop:
            stop = last
            continue
        if stop > start:
            yield start, stop
        start, stop = first, last
    if stop > start:
        yield start, stop


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            raise
        if at >= size:
            return
        hole = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        yield at, hole
        at = hole


def _second_level(runs: list[tuple[int, int]], moved: int) -> Iterator[tuple[int, bytes]]:
    """Yield the tables of the second level that are not empty, with their numbers.

    Cluster 0 of the disk is cluster ``moved`` of the file.
    """
    each = CLUSTER // 8
    current, table = -1, array("Q")
    for start, stop in runs:
        at = start
        while at < stop:
            number, last = at // each, min(stop, (at // each + 1) * each)
            if number != current:
                if current >= 0:
                    yield current, _big_endian(table)
                current, table = number, array("Q", bytes(CLUSTER))
            places = range(at * CLUSTER | _COPIED, last * CLUSTER | _COPIED, CLUSTER)
            table[at % each : at % each + last - at] = array("Q", places)
            at = last
            if start == 0 and number == 0:
                table[0] = moved * CLUSTER | _COPIED
    if current >= 0:
        yield current, _big_endian(table)


def _mark_used(blocks: dict[int, bytearray], start: int, stop: int) -> None:
    """Set the references of a range of clusters to 1, in blocks by their numbers."""
    each = CLUSTER // 2
    while start < stop:
        number, first = divmod(start, each)
        last = min(each, first + stop - start)
        block = blocks.setdefault(number, bytearray(CLUSTER))
        block[2 * first : 2 * last] = b"\0\1" * (last - first)
        start += last - first


def _big_endian(values: array[int]) -> bytes:
    swapped = array("Q", values)
    swapped.byteswap()
    return swapped.tobytes()
