"""Compressed images: telling them, looking into their beginning, unpacking them with bounds.

The cache keeps what the server holds, compression and all; whoever converts works on the unpacked bytes. What a
compressed file claims is never believed: output, memory and disk are bounded while it is unpacked.
"""

from __future__ import annotations

import bz2
import io
import lzma
import os
import re
import zlib
from contextlib import closing
from typing import IO, TYPE_CHECKING, Protocol, cast

import zstandard
from isal import igzip, isal_zlib

from provisioner.contracts import MIB, pwrite_all
from provisioner.contracts.errors import CacheFullError, CorruptImageError, ImageTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

MAGICS = {"gz": b"\x1f\x8b\x08", "xz": b"\xfd7zXZ\x00", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh"}

# xz -9 needs 65 MiB to unpack, zstd -19 a window of 8 MiB. What asks for more is told how much there is: the daemon
# stays below 200 MiB whatever comes.
_MEMORY = 96 * MIB
_WINDOW_LOG = 26
_BLOCK = 1 * MIB
_ZEROS = bytes(_BLOCK)
# How often the file system's free space is looked at.
_SPACE_STEP = 64 * MIB

_FAULTS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    lzma.LZMAError,
    zlib.error,
    cast("type[Exception]", isal_zlib.error),
    zstandard.ZstdError,
)


def compression_of(beginning: bytes | memoryview) -> str | None:
    """The compression whose magic a file begins with: ``gz``, ``xz``, ``zst`` or ``bz2``."""
    for name, magic in MAGICS.items():
        if bytes(beginning[: len(magic)]) == magic:
            return name
    return None


def beginning_of(compression: str, packed: bytes, most: int) -> bytes:
    """The first unpacked bytes, as far as ``packed`` (the file's beginning) yields them, at most ``most``.

    Raises CorruptImageError.
    """
    try:
        if compression == "gz":
            return bytes(isal_zlib.decompressobj(31).decompress(packed, most))
        if compression == "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY).decompress(packed, most)
        if compression == "bz2":
            return bz2.BZ2Decompressor().decompress(packed, most)
        with _zstd().stream_reader(packed) as reader:
            return reader.read(most)
    except _FAULTS as error:
        raise _corrupt(compression, error) from error


def unpack(
    compression: str,
    packed: io.RawIOBase,
    fd: int,
    limit: int,
    min_free: int,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Unpack all of ``packed`` into the empty file ``fd``, sparsely; the number of unpacked bytes.

    ``limit``: the most unpacked bytes; ``min_free``: bytes to leave free on the file system. ``check`` is called
    between two blocks and may raise to stop. Blocking. Raises ImageTooLargeError, CacheFullError, CorruptImageError
    and what reading ``packed`` raises.
    """
    size = space_checked = 0
    with closing(_open(compression, packed)) as stream:
        while True:
            check()
            try:
                block = stream.read(_BLOCK)
            except _FAULTS as error:
                raise _corrupt(compression, error) from error
            if not block:
                break
            if size + len(block) > limit:
                raise ImageTooLargeError(
                    f"the {compression} image unpacks to more than the {limit} bytes that would fit"
                )
            if size >= space_checked:
                _check_space(fd, min_free)
                space_checked = size + _SPACE_STEP
            if block != _ZEROS[: len(block)]:
                pwrite_all(fd, block, size)
            size += len(block)
    os.ftruncate(fd, size)
    return size


class _Stream(Protocol):
    def read(self, most: int, /) -> bytes: ...

    def close(self) -> None:
        """Give the memory back at once: an error that is on its way holds on to us."""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


def _open(compression: str, packed: io.RawIOBase) -> _Stream:
    if compression == "gz":
        return cast("_Stream", igzip.IGzipFile(fileobj=io.BufferedReader(packed, _BLOCK)))  # type: ignore[no-untyped-call]
    if compression == "xz":
        return _Members(packed, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY), padding=b"\0")
    if compression == "bz2":
        return _Members(packed, bz2.BZ2Decompressor)
    return _ZstdStream(packed)


class _Members:
    """Streams one after another, and nothing after them: with a bound on memory that LZMAFile does not offer, and
    without bz2's silence about what follows the last one. ``padding`` may stand between them.
    """

    def __init__(self, packed: io.RawIOBase, make: Callable[[], _Decompressor], padding: bytes = b"") -> None:
        self._packed = packed
        self._make = make
        self._padding = padding
        self._decompressor: _Decompressor | None = make()

    def read(self, most: int, /) -> bytes:
        while self._decompressor is not None:
            if self._decompressor.eof and not self._next_member():
                break
            chunk = b""
            if self._decompressor.needs_input:
                chunk = self._packed.read(_BLOCK) or b""
                if not chunk:
                    raise EOFError("it ends too early")
            block = self._decompressor.decompress(chunk, most)
            if block:
                return block
        return b""

    def close(self) -> None:
        self._decompressor = None

    def _next_member(self) -> bool:
        rest = self._unpadded(self._decompressor.unused_data if self._decompressor is not None else b"")
        while not rest and (more := self._packed.read(_BLOCK)):
            rest = self._unpadded(more)
        if not rest:
            return False
        self._decompressor = self._make()
        self._packed = _Rejoined(rest, self._packed)
        return True

    def _unpadded(self, data: bytes) -> bytes:
        return data.lstrip(self._padding) if self._padding else data


class _ZstdStream:
    """zstd frames, one after another; unlike the library's own reader it tells an early end from the end."""

    def __init__(self, packed: io.RawIOBase) -> None:
        self._packed = packed
        self._frames = ZstdFrames()
        self._unpacked = _zstd().stream_reader(
            cast("IO[bytes]", _Source(self._pull)), read_size=_BLOCK, read_across_frames=True
        )

    def read(self, most: int, /) -> bytes:
        block = self._unpacked.read(most)
        if not block and not self._frames.at_boundary:
            raise EOFError("it ends too early")
        return block

    def close(self) -> None:
        del self._unpacked

    def _pull(self, size: int) -> bytes:
        chunk = self._packed.read(size) or b""
        self._frames.feed(chunk)
        return chunk


class _Source:
    """A function as the file-like object that zstandard reads."""

    def __init__(self, pull: Callable[[int], bytes]) -> None:
        self.read = pull


class ZstdFrames:
    """Follows the frame and block headers (RFC 8878, 3.1) without unpacking, to know where a frame ends."""

    def __init__(self) -> None:
        self._skip = 0
        self._held = b""
        self._step: Callable[[bytes], tuple[int, int] | None] = self._begin
        self._checksum = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end with a whole frame."""
        return self._step == self._begin and not self._skip and not self._held

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the file."""
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
        if 0x184D2A50 <= int.from_bytes(data[:4], "little") <= 0x184D2A5F:
            return 8, int.from_bytes(data[4:8], "little")
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


class _Rejoined(io.RawIOBase):
    """Bytes already read, then the rest of the file."""

    def __init__(self, first: bytes, rest: io.RawIOBase) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = -1, /) -> bytes | None:
        if self._first:
            first, self._first = self._first, b""
            return first
        return self._rest.read(size)


def _zstd() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=2**_WINDOW_LOG)


def _check_space(fd: int, min_free: int) -> None:
    status = os.fstatvfs(fd)
    if status.f_bavail * status.f_frsize < min_free:
        raise CacheFullError("the cache's file system has no room to unpack the image")


def _corrupt(compression: str, error: Exception) -> CorruptImageError:
    if re.search(r"[Mm]emory", str(error)):
        return CorruptImageError(
            f"the image cannot be unpacked ({compression}): that would take more than {_MEMORY // MIB} MiB of memory; "
            "compress it as with xz -9 or zstd --long=26 at most"
        )
    return CorruptImageError(f"the image cannot be unpacked ({compression}): {error}")
