"""Hashes and inspects a file while it grows, reading from the page cache in a separate thread.

Measured: rereading what was just written in a second thread costs less than hashing in the download's thread.
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
# The first wait needs only a header. Later ones wait for more, so the two threads do not alternate.
_HEADER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Hashes:
    """Hex digests by algorithm, and the checksums of the chunks (see ``chunk_sums``)."""

    digests: dict[str, str]
    sums: bytes


def hash_and_inspect(
    growing_file: GrowingFile,
    algorithms: Iterable[str],
    inspected: Callable[[ImageInfo], None],
    hashed: Callable[[int, int], None] = lambda _start, _stop: None,
) -> Hashes:
    """Hash the whole file as it grows, and inspect its header. Blocking: run it in a thread.

    ``inspected`` is called once, from this thread, as soon as the format is known; ``hashed`` with each part that has
    been hashed. Raises the download's error, and UnsafeImageError as soon as the header shows it.
    """
    digests = {name: hashlib.new(name, usedforsecurity=True) for name in algorithms}
    summer, inspection = ChunkSummer(), cast("FileInspection | None", FileInspection(growing_file.check))
    buffer = memoryview(bytearray(_READ))
    position, step, reported = 0, _HEADER, 0
    # Check the download before each read, so that hashing stops at once when the download is cancelled.
    while growing_file.size is None or position < growing_file.size:
        available = growing_file.wait_beyond(position, step)
        if available == position:
            continue  # the file ends here
        got = os.preadv(growing_file.fd, [buffer[: min(_READ, available - position)]], position)
        if not got:
            raise CorruptImageError("the cached file was truncated while it was read")
        for digest in digests.values():
            digest.update(buffer[:got])
        summer.feed(buffer[:got])
        position += got
        if position >= reported + STEP:
            hashed(reported, position)
            reported = position
        if inspection is not None:
            info = inspection.feed(buffer[:got], last=False)
            if info is not None:
                inspection, step = None, _READ
                inspected(info)
    if inspection is not None:
        info = inspection.feed(b"", last=True)
        inspected(info if info is not None else ImageInfo("raw", None))
    return Hashes({name: digest.hexdigest() for name, digest in digests.items()}, summer.finish())
