"""Splits raw images into runs. Skips holes of a complete file."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from lvp_convert_native.runs import PAGE, RUN_BYTES, Run
from provisioner.contracts.errors import CorruptImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lvp_convert_native.image_file import ImageFile


def raw_runs(extents: Iterable[tuple[int, int, bool]], size: int) -> Iterator[Run]:
    """Cut ``(start, stop, is_data)`` extents, in order and without gaps, into runs.

    Extents may begin anywhere; data grows to whole pages and holes shrink to them.
    """
    done = 0
    for _, stop, is_data in extents:
        end = min(-(-stop // PAGE) * PAGE, size) if is_data else stop if stop >= size else stop // PAGE * PAGE
        if end > done:
            yield from _data_runs(done, end) if is_data else (Run(done, end - done),)
            done = end


def _data_runs(start: int, stop: int) -> Iterator[Run]:
    while start < stop:
        end = min((start // RUN_BYTES + 1) * RUN_BYTES, stop)
        yield Run(start, end - start, host=start, low=start, need=end)
        start = end


class RawQueue:
    """Runs of a raw image in the order of the file."""

    def __init__(self, image: ImageFile, size: int) -> None:
        if image.size < size:
            raise CorruptImageError(f"the image is truncated: {image.size} of {size} bytes")
        self._image = image
        extents = image.extents(size) if image.complete else [(0, size, True)]
        self._runs = raw_runs(extents, size)
        self._lock = threading.Lock()

    def take(self) -> Run | None:
        """Return the next run, or None at the end."""
        with self._lock:
            run = next(self._runs, None)
        if run is not None and run.is_zero:  # a hole may also be where blocks were lost
            self._image.check_zeros(run.guest, run.guest + run.length)
        return run


class RawReader:
    """Reads runs of a raw image."""

    def __init__(self, image: ImageFile) -> None:
        self._image = image

    def read(self, run: Run, into: memoryview) -> None:
        """Fill ``into`` with the run's bytes."""
        assert run.host is not None
        self._image.read_into(into, run.host)
