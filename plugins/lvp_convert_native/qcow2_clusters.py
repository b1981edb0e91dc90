"""Reads runs of qcow2 clusters: plain ones unchanged, compressed ones inflated to exactly one cluster each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_convert_native.inflate import inflater
from lvp_convert_native.qcow2_tables import COMPRESSED, OFFSET, compressed_span, is_data
from lvp_convert_native.runs import RUN_BYTES

if TYPE_CHECKING:
    from array import array

    from lvp_convert_native.image_file import ImageFile
    from lvp_convert_native.qcow2_header import Header
    from lvp_convert_native.runs import Run

# The compressed clusters of a run are usually adjacent and are read together. One spans at most two clusters: 4 MiB.
WINDOW = 2 * RUN_BYTES


class Qcow2Reader:
    """Reads runs of a qcow2 image for one thread. The runs come from a ``Mapper``, which has checked their entries."""

    def __init__(self, image: ImageFile, header: Header) -> None:
        self._image = image
        self._header = header
        self._window = memoryview(bytearray(WINDOW))
        self._inflate = inflater(header.compression, header.cluster_size)

    def read(self, run: Run, into: memoryview) -> None:
        """Fill ``into`` with the run's bytes."""
        if run.entries is None:
            assert run.host is not None
            self._image.read_into(into, run.host)
        else:
            self._clusters(run.entries, into)

    def _clusters(self, entries: array[int], into: memoryview) -> None:
        size, at, end = self._header.cluster_size, 0, len(entries)
        while at < end:
            entry = entries[at]
            if entry & COMPRESSED:
                stop = self._compressed(entries, at, into)
            else:
                stop = at + 1
                if not is_data(entry):
                    into[at * size : stop * size] = bytes(len(into[at * size : stop * size]))
                else:
                    while stop < end and entries[stop] == entry + (stop - at) * size:
                        stop += 1
                    self._image.read_into(into[at * size : stop * size], entry & OFFSET)
            at = stop

    def _compressed(self, entries: array[int], at: int, into: memoryview) -> int:
        """Inflate compressed clusters from index ``at``, as many as one read covers; return the next index."""
        low, high = compressed_span(entries[at], self._header)
        spans = [(low, high)]
        for entry in entries[at + 1 :]:
            start, stop = compressed_span(entry, self._header) if entry & COMPRESSED else (0, 0)
            if not low <= start <= high or stop - low > WINDOW:
                break
            spans.append((start, stop))
            high = max(high, stop)
        window = self._window[: high - low]
        self._image.read_into(window, low)
        size = self._header.cluster_size
        for index, (start, stop) in enumerate(spans, at):
            target = into[index * size : (index + 1) * size]  # the last cluster may be cut off at the end of the disk
            target[:] = self._inflate(window[start - low : stop - low])[: len(target)]
        return at + len(spans)
