"""Recognize a file from its beginning: how it is compressed, and what is inside. CPU only: feed it in a thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from provisioner.contracts import MIB
from provisioner.contracts.errors import UnsafeImageError
from provisioner.download.inspection import WINDOW, ImageInfo, Inspection
from provisioner.download.signatures import HEAD, not_a_disk
from provisioner.download.unpack import beginning_of, compression_of

if TYPE_CHECKING:
    from collections.abc import Callable

# A compressed file whose first bytes have not told by here what is inside is taken at what they did tell.
_PACKED_WINDOW = 8 * MIB
_TOOLS = {"gz": "gzip", "xz": "xz", "bz2": "bzip2", "zst": "zstd"}


class Recognition:
    """Fed with a file's bytes from the first on, until it has made up its mind.

    ``check`` is called between pieces of bounded work and may raise to stop.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._plain: Inspection | None = None
        self._compression: str | None = None
        self._held = bytearray()
        self._look_at = HEAD

    def feed(self, data: bytes | memoryview, *, last: bool) -> ImageInfo | None:
        """The next bytes; ``last`` when no more will come. The verdict once there is one.

        Raises UnsafeImageError for what is not a disk image or must not be used as one; CorruptImageError if a
        compressed file cannot be decompressed.
        """
        if self._plain is not None:
            return self._plain.feed(data, last=last)
        self._held += data
        if len(self._held) < self._look_at and not last:
            return None
        if self._compression is None:
            self._compression = compression_of(memoryview(self._held))
        if self._compression is None:
            _refuse(not_a_disk(bytes(self._held[:HEAD])), "")
            self._plain, held, self._held = Inspection(), self._held, bytearray()
            return self._plain.feed(bytes(held), last=last)
        return self._look_inside(self._compression, last=last or len(self._held) >= _PACKED_WINDOW)

    def _look_inside(self, compression: str, *, last: bool) -> ImageInfo | None:
        # From the start each time, but only when there is twice as much: a few times, of a beginning that is bounded.
        self._look_at = min(_PACKED_WINDOW, 2 * len(self._held))
        inside = beginning_of(compression, bytes(self._held), WINDOW, self._check)
        if len(inside) >= HEAD or last:
            if compression_of(inside) is not None:
                raise UnsafeImageError("the image is compressed twice")
            _refuse(not_a_disk(inside[:HEAD]), f" inside {_TOOLS[compression]}")
        info = Inspection().feed(inside, last=last)
        return None if info is None else replace(info, compression=compression)


def _refuse(what: str | None, where: str) -> None:
    """Raise UnsafeImageError if there is a ``what``."""
    if what is None:
        return
    if "page" in what or "text" in what:
        advice = "check that the url leads to the image itself"
    else:
        advice = "unpack it and offer the disk image itself, compressed with gzip, bzip2, xz or zstd if need be"
    raise UnsafeImageError(f"this is {what}{where}, not a disk image; {advice}")
