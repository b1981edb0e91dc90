"""Recognising a file from its beginning: what it is packed with, and what is inside. CPU only: feed it in a thread."""

from __future__ import annotations

from dataclasses import replace

from provisioner.contracts import MIB
from provisioner.contracts.errors import UnsafeImageError
from provisioner.download.inspection import WINDOW, ImageInfo, Inspection
from provisioner.download.unpack import beginning_of, compression_of

# A packed file whose first bytes have not said by here what is inside is taken at what they did say.
_PACKED_WINDOW = 8 * MIB


class Recognition:
    """Fed with a file's bytes from the first on, until it has made up its mind."""

    def __init__(self) -> None:
        self._plain = Inspection()
        self._compression: str | None = None
        self._packed = bytearray()
        self._begun = False

    def feed(self, data: bytes | memoryview, *, last: bool) -> ImageInfo | None:
        """The next bytes; ``last`` when no more will come. The verdict once there is one.

        Raises UnsafeImageError; CorruptImageError where a packed file cannot be unpacked.
        """
        if not self._begun and data:
            self._begun = True
            self._compression = compression_of(data)
        if self._compression is None:
            return self._plain.feed(data, last=last)
        self._packed += data
        return self._look_inside(self._compression, last=last or len(self._packed) >= _PACKED_WINDOW)

    def _look_inside(self, compression: str, *, last: bool) -> ImageInfo | None:
        # From the start each time: a few times at most, and of a beginning that is bounded.
        inside = beginning_of(compression, bytes(self._packed), WINDOW)
        info = Inspection().feed(inside, last=last)
        if info is None:
            return None
        if compression_of(inside) is not None:
            raise UnsafeImageError("the image is compressed twice")
        return replace(info, compression=compression)
