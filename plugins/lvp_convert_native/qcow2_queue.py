"""Decides which run of a qcow2 image is next. Tables are opened as needed, never all at once.

A complete image is processed in the order of its disk. While an image arrives, tables and runs are taken in the
order in which the last byte they need arrives: a table late in the file delays only what it maps. It is fetched
ahead, if the view can do that, as soon as no other known run is ready.
"""

from __future__ import annotations

import heapq
import threading
from typing import TYPE_CHECKING

from lvp_convert_native.qcow2_tables import Mapper, check_l1, entries, table_offset
from lvp_convert_native.runs import Run

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from lvp_convert_native.image_file import ImageFile
    from lvp_convert_native.qcow2_header import Header

# If an image has more L2 tables than this (128 TiB in clusters of 64 KiB), they are taken in the order of
# the disk even while it arrives, because sorting them would take too much memory.
MAX_SORTED = 262144
# While this many runs wait (about 15 MB), no further table is opened.
MAX_WAITING = 65536


class Qcow2Queue:
    """Runs of a qcow2 image."""

    def __init__(self, image: ImageFile, header: Header) -> None:
        self._image = image
        self._header = header
        self._in_file_order = not image.complete and header.l1_entries <= MAX_SORTED
        self._mapper = Mapper(header, streaming=self._in_file_order)
        self._lock = threading.Lock()
        self._serial = 0  # breaks ties in the heap
        self._runs: list[tuple[int, int, Run]] = []
        l1 = entries(image.read(header.l1_offset, 8 * header.l1_entries))
        check_l1(l1, header)
        self._tables = self._places(l1)
        self._next_table = next(self._tables, None)
        self._not_ahead = -1

    def take(self) -> Run | None:
        """Return the next run. Until a needed table has arrived, all threads block: no earlier run is left."""
        with self._lock:
            while self._next_table is not None and not self._run_comes_first(self._next_table[0]):
                _, index, offset = self._next_table
                self._next_table = next(self._tables, None)
                self._open(index, offset)
            if self._in_file_order and self._next_table is not None and not self._image.has(self._runs[0][0]):
                self._look_ahead()
            return heapq.heappop(self._runs)[2] if self._runs else None

    def _look_ahead(self) -> None:
        """Fetch the next table ahead if no known run is ready: it may map one that is."""
        assert self._next_table is not None
        _, index, offset = self._next_table
        if offset in {0, self._not_ahead}:
            return
        table = self._image.ahead(offset, self._header.cluster_size)
        if table is None:  # not requested again: it arrives soon or must be waited for
            self._not_ahead = offset
            return
        self._next_table = next(self._tables, None)
        self._map(index, table)

    def _run_comes_first(self, table_key: int) -> bool:
        return bool(self._runs) and (self._runs[0][0] <= table_key or len(self._runs) >= MAX_WAITING)

    def _places(self, l1: array[int]) -> Iterator[tuple[int, int, int]]:
        """Return ``(key, L1 index, offset)`` of every table, in the order of opening; offset 0 if there is no table."""
        places = (self._place(index, entry) for index, entry in enumerate(l1))
        return iter(sorted(places)) if self._in_file_order else places

    def _place(self, index: int, entry: int) -> tuple[int, int, int]:
        offset = table_offset(entry, index, self._header)
        if not self._in_file_order:
            return index * self._header.table_span, index, offset
        return offset + self._header.cluster_size if offset else 0, index, offset

    def _open(self, index: int, offset: int) -> None:
        if not offset:
            start = index * self._header.table_span
            self._push(Run(start, min(self._header.table_span, self._header.size - start)))
            return
        self._map(index, self._image.read(offset, self._header.cluster_size))

    def _map(self, index: int, table: bytes) -> None:
        for run in self._mapper.runs(index, entries(table)):
            self._push(run)

    def _push(self, run: Run) -> None:
        self._serial += 1
        heapq.heappush(self._runs, (run.need if self._in_file_order else run.guest, self._serial, run))
