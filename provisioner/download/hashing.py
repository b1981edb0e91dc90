"""Hashes and inspects a file while it grows, from the page cache, in a thread of its own.

Measured: a second thread that re-reads what was just written costs less than hashing in the download's thread.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from provisioner.contracts.errors import CorruptImageError
from provisioner.download.chunk_sums import ChunkSummer
from provisioner.download.inspection import FileInspection, ImageInfo
from provisioner.download.page_cache import STEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from provisioner.download.growing_file import GrowingFile

_READ = 1024 * 1024
# The first wait is for a header only; later ones for enough to keep the two threads from taking turns.
_HEADER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Hashes:
    """Digests in hex by algorithm, and the checksums of the chunks (see ``chunk_sums``)."""

    digests: dict[str, str]
    sums: bytes


def hash_and_inspect(
    growing_file: GrowingFile,
    algorithms: Iterable[str],
    inspected: Callable[[ImageInfo], None],
    hashed: Callable[[int, int], None] = lambda _start, _stop: None,
) -> Hashes:
    """Read the file as it grows and hash all of it. Blocks: run it in a thread.

    ``inspected`` is called once, from this thread, as soon as the image is known for what it is; ``hashed`` with each
    part that this function needs no more. Raises what ended the download, and UnsafeImageError at once.
    """
    digests = {name: hashlib.new(name, usedforsecurity=True) for name in algorithms}
    summer, inspection = ChunkSummer(), cast("FileInspection | None", FileInspection(growing_file.check))
    buffer = memoryview(bytearray(_READ))
    position, step, told = 0, _HEADER, 0
    # One read between two looks at the mark: a download that is given up is not hashed to where it had come.
    while growing_file.size is None or position < growing_file.size:
        available = growing_file.wait_beyond(position, step)
        if available == position:
            continue  # it ended just here
        got = os.preadv(growing_file.fd, [buffer[: min(_READ, available - position)]], position)
        if not got:
            raise CorruptImageError("the cached file became shorter while it was read")
        for digest in digests.values():
            digest.update(buffer[:got])
        summer.feed(buffer[:got])
        position += got
        if position >= told + STEP:
            hashed(told, position)
            told = position
        if inspection is not None:
            info = inspection.feed(buffer[:got], last=False)
            if info is not None:
                inspection, step = None, _READ
                inspected(info)
    if inspection is not None:
        info = inspection.feed(b"", last=True)
        inspected(info if info is not None else ImageInfo("raw", None))
    return Hashes({name: digest.hexdigest() for name, digest in digests.items()}, summer.finish())
