"""What tests read of volumes: these are mostly holes, and to read a GiB of them takes half a second."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def first_bytes(path: Path, size: int) -> bytes:
    """Return the first ``size`` bytes of a file, fewer only if it is shorter."""
    with path.open("rb") as file:
        return file.read(size)


def data_of(path: Path) -> list[tuple[int, bytes]]:
    """Return the offset and the bytes of each part of a file between its holes."""
    found = []
    with path.open("rb") as file:
        size, end = os.fstat(file.fileno()).st_size, 0
        with suppress(OSError):  # only a hole is left
            while end < size:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                found.append((start, os.pread(file.fileno(), end - start, start)))
    return found
