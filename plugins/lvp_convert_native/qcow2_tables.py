"""Turns qcow2 L1 and L2 tables into runs. Pure; every offset is checked against the file."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lvp_convert_native.qcow2_header import Compression
from lvp_convert_native.runs import PAGE, RUN_BYTES, Run
from provisioner.contracts.errors import CorruptImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_convert_native.qcow2_header import Header

OFFSET = 0x00FF_FFFF_FFFF_FE00
COMPRESSED = 1 << 62
ZERO = 1  # only in standard entries; in compressed ones bit 0 belongs to the offset

# While an image arrives, runs are split at gaps in the file that are larger than this, so that the first
# part does not wait for the second.
JUMP = 1024**2

# Minimum size of a compressed cluster: deflate packs at most 258 bytes into two bits; a zstd frame has a header,
# a block header and one byte.
_DEFLATE_BEST = 1032
_ZSTD_LEAST = 8


def entries(table: bytes) -> array[int]:
    """Return the big-endian 64-bit entries of a table."""
    result = array("Q", table)
    if sys.byteorder == "little":
        result.byteswap()
    return result


def is_data(entry: int) -> bool:
    """Return whether an L2 entry refers to bytes in the file (otherwise: zeros)."""
    return bool(entry & COMPRESSED or (entry & OFFSET and not entry & ZERO))


def compressed_span(entry: int, header: Header) -> tuple[int, int]:
    """Return the range ``[start, stop)`` of the file for a compressed entry; the stream may end before ``stop``."""
    bits = 62 - (header.cluster_bits - 8)
    start = entry & ((1 << bits) - 1)
    sectors = (entry & (COMPRESSED - 1)) >> bits
    return start, min((start & ~511) + (sectors + 1) * 512, header.file_size)


def table_offset(entry: int, index: int, header: Header) -> int:
    """Return the offset of the L2 table of L1 entry ``index``; 0 if there is none, and its range is all zeros."""
    offset = entry & OFFSET
    if offset and (offset % header.cluster_size or offset + header.cluster_size > header.file_size):
        raise CorruptImageError(
            f"qcow2 L1 entry {index} refers to an L2 table at byte {offset}, outside the file's clusters"
        )
    return offset


def check_l1(l1: array[int], header: Header) -> None:
    """Reject L1 tables that repeat L2 tables: a 32 MiB image of that kind would keep a processor busy for minutes."""
    tables = sum(1 for entry in l1 if entry & OFFSET)
    if tables * header.cluster_size > header.file_size:
        raise CorruptImageError("the qcow2 L1 table refers to the same L2 table several times")


@dataclass(slots=True)
class Mapper:
    """Turns the L2 tables of one image into runs, and sums up how much of the file all tables refer to.

    ``streaming``: split runs whose clusters are far apart in the file.
    """

    header: Header
    streaming: bool = False
    _claimed: int = field(default=0, init=False)

    def runs(self, index: int, table: array[int]) -> Iterator[Run]:
        """Return the runs of the L2 table of L1 entry ``index``, in the order of the disk."""
        header = self.header
        first = index * header.table_span
        count = min(len(table), -(-(header.size - first) // header.cluster_size))
        table = table[:count]
        if header.version == 2 and any(entry & ZERO and not entry & COMPRESSED for entry in table):
            raise CorruptImageError("the qcow2 image has version 2 but zero clusters, which only version 3 has")
        self._claim(table)
        group = max(1, PAGE // header.cluster_size)
        for start, stop, has_data in _groups(table, group, RUN_BYTES // header.cluster_size):
            guest = first + start * header.cluster_size
            if has_data:
                yield from self._data(guest, table[start:stop])
            else:
                yield Run(guest, self._length(guest, stop - start))

    def _length(self, guest: int, clusters: int) -> int:
        return min(clusters * self.header.cluster_size, self.header.size - guest)

    def _claim(self, table: array[int]) -> None:
        """Reject tables that refer to more bytes than the file has: a small file could otherwise fill a disk."""
        compressed = sum(1 for entry in table if entry & COMPRESSED)
        plain = sum(1 for entry in table if entry & OFFSET and not entry & COMPRESSED)
        size = self.header.cluster_size
        zlib = self.header.compression is Compression.ZLIB
        self._claimed += plain * size + compressed * (max(size // _DEFLATE_BEST, 1) if zlib else _ZSTD_LEAST)
        if self._claimed > self.header.file_size + size:  # the last cluster may be cut off at the end of the disk
            raise CorruptImageError(
                "the qcow2 tables refer to more clusters than the file has: the file is truncated, or some clusters "
                "are used more than once"
            )

    def _data(self, guest: int, part: array[int]) -> Iterator[Run]:
        size, length = self.header.cluster_size, self._length(guest, len(part))
        first = part[0]
        if not first & COMPRESSED and part == array("Q", range(first, first + len(part) * size, size)):
            host = first & OFFSET
            self._check(host, host + length)
            yield Run(guest, length, host=host, low=host, need=host + length)
        else:
            yield from self._scattered(guest, part)

    def _scattered(self, guest: int, part: array[int]) -> Iterator[Run]:
        """Yield runs of clusters that are compressed or not adjacent."""
        size = self.header.cluster_size
        may_cut = self.streaming and size >= PAGE
        begin, low, high, last = 0, self.header.file_size, 0, None
        for i, entry in enumerate(part):
            if not is_data(entry):
                continue
            start, stop = self._span(entry, guest + i * size)
            if may_cut and last is not None and abs(start - last) > JUMP:
                yield self._run(guest, part, begin, i, low, high)
                begin, low, high = i, self.header.file_size, 0
            low, high, last = min(low, start), max(high, stop), stop
        yield self._run(guest, part, begin, len(part), low, high)

    def _run(self, guest: int, part: array[int], begin: int, end: int, low: int, high: int) -> Run:
        at = guest + begin * self.header.cluster_size
        return Run(at, self._length(at, end - begin), entries=part[begin:end], low=low, need=high)

    def _span(self, entry: int, guest: int) -> tuple[int, int]:
        if entry & COMPRESSED:
            start, stop = compressed_span(entry, self.header)
            if not self.header.cluster_size <= start < self.header.file_size:
                raise CorruptImageError(f"a compressed qcow2 cluster is at byte {start}, outside the file's data")
            return start, stop
        start = entry & OFFSET
        stop = start + self._length(guest, 1)
        self._check(start, stop)
        return start, stop

    def _check(self, start: int, stop: int) -> None:
        if start % self.header.cluster_size:
            raise CorruptImageError(f"a qcow2 cluster is at byte {start}, which is not the start of a cluster")
        if stop > self.header.file_size:
            raise CorruptImageError(
                f"the image is truncated: a qcow2 cluster is at byte {start} of {self.header.file_size}"
            )


def _groups(table: array[int], group: int, longest: int) -> Iterator[tuple[int, int, bool]]:
    """Yield ``(start, stop, has_data)``, in clusters, for the whole table, split at groups of ``group`` clusters.

    A group has data if one of its clusters has. Ranges with data are split at multiples of ``longest``.
    """
    marks = bytes([1 if e & COMPRESSED or (e & OFFSET and not e & ZERO) else 0 for e in table])
    if group > 1:
        marks = bytes([1 in marks[at : at + group] for at in range(0, len(marks), group)])
        longest //= group
    at = 0
    while at < len(marks):
        has_data = marks[at] == 1
        stop = marks.find(0 if has_data else 1, at)
        stop = len(marks) if stop < 0 else stop
        if has_data:
            stop = min(stop, (at // longest + 1) * longest)
        yield at * group, min(stop * group, len(table)), has_data
        at = stop
