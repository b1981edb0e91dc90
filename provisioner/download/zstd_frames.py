"""Finds where the frames of a zstd file begin and end, from their headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_SKIPPABLE_HEADER = 8


def after_skippable_frames(head: bytes) -> int | None:
    """Return where the first other frame begins; None if ``head`` does not begin with a skippable frame.

    pzstd writes one in front of each frame. The offset may be beyond ``head``.
    """
    position = 0
    while int.from_bytes(head[position : position + 4], "little") in _SKIPPABLE:
        position += _SKIPPABLE_HEADER + int.from_bytes(head[position + 4 : position + 8], "little")
    return position or None


class ZstdFrames:
    """Follows frame and block headers (RFC 8878, 3.1) to find the end of each frame without decompressing it."""

    def __init__(self) -> None:
        self._skip = 0
        self._held = b""
        self._step: Callable[[bytes], tuple[int, int] | None] = self._begin
        self._checksum = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end with a complete frame."""
        return self._step == self._begin and not self._skip and not self._held

    def feed(self, chunk: bytes) -> None:
        """Add the next bytes of the file."""
        data = self._held + chunk[self._skip :] if self._skip <= len(chunk) else b""
        self._skip = max(0, self._skip - len(chunk))
        position = 0
        while position < len(data) or (not self._skip and self._step == self._end):
            advance = self._step(data[position : position + 18])
            if advance is None:
                break
            header, body = advance
            position += header + body
        self._held = data[position:]
        self._skip += max(0, position - len(data))

    def _begin(self, data: bytes) -> tuple[int, int] | None:
        if len(data) < 18 and not (len(data) >= 5 and len(data) >= zstandard.frame_header_size(data)):
            return None
        if int.from_bytes(data[:4], "little") in _SKIPPABLE:
            return _SKIPPABLE_HEADER, int.from_bytes(data[4:8], "little")
        self._checksum = 4 if data[4] & 4 else 0
        self._step = self._block
        return zstandard.frame_header_size(data), 0

    def _block(self, data: bytes) -> tuple[int, int] | None:
        if len(data) < 3:
            return None
        header = int.from_bytes(data[:3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if last:
            self._step = self._end
        return 3, 1 if kind == 1 else size

    def _end(self, data: bytes) -> tuple[int, int] | None:
        del data
        self._step = self._begin
        return 0, self._checksum
