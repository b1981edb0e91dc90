"""Compressed streams, read in steps of bounded work: gz, xz, bz2 and zstd, with any number of members or frames.

A step takes at most ``INPUT`` compressed bytes and gives at most ``OUTPUT``, so that between two steps a cancel is
heard whatever the file holds. Memory is bounded too. What breaks raises one of ``FAULTS``.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import IO, TYPE_CHECKING, Protocol, cast

import zstandard
from isal import igzip_lib

from provisioner.contracts import MIB
from provisioner.download.zstd_frames import ZstdFrames

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

# xz -9 needs 65 MiB to decompress, zstd -19 a window of 8 MiB. What asks for more is told how much there is: the
# daemon stays below 200 MiB whatever comes.
MEMORY = 96 * MIB
_WINDOW_LOG = 26
OUTPUT = 1 * MIB
# A file of nothing but empty members has thousands of them in a MiB, and each takes a copy of what follows it.
INPUT = 64 * 1024
# A gzip header may hold a file name and a comment of any length; one that is longer means harm.
_MAX_HEADER = 64 * 1024

FAULTS: tuple[type[Exception], ...] = (
    EOFError,
    OverflowError,
    ValueError,
    lzma.LZMAError,
    zlib.error,
    cast("type[Exception]", igzip_lib.error),
    zstandard.ZstdError,
    OSError,  # bz2's
)


class Decompressor(Protocol):
    """Reads one compressed file from its beginning."""

    def step(self) -> bytes | None:
        """Do a bounded piece of work: some output, none yet (``b""``), or None at the end. Raises FAULTS."""

    def close(self) -> None:
        """Free the memory at once: an error that is on its way holds on to this object."""


def decompressor(compression: str, compressed: io.RawIOBase) -> Decompressor:
    """Open ``compressed``, a file of that compression: ``gz``, ``xz``, ``bz2`` or ``zst``."""
    if compression == "gz":
        return _Members(compressed, _GzipMember, padding=b"\0")
    if compression == "xz":
        return _Members(compressed, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY), padding=b"\0")
    if compression == "bz2":
        return _Members(compressed, bz2.BZ2Decompressor)
    return _Zstd(compressed)


class _Member(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Members:
    """Members (xz and bz2: streams) one after another, and nothing after them. ``padding`` may stand between them.

    The libraries' own readers have no bound on memory (xz), ignore what follows the last member (bz2), or work on
    through empty members without end (gz).
    """

    def __init__(self, compressed: io.RawIOBase, make: Callable[[], _Member], padding: bytes = b"") -> None:
        self._compressed = compressed
        self._make = make
        self._padding = padding
        self._member: _Member | None = make()
        self._ahead = b""  # read, but not given to a member yet

    def step(self) -> bytes | None:
        if self._member is None:
            return self._between()
        if self._member.eof:
            self._ahead = self._member.unused_data + self._ahead
            self._member = None
            return b""
        data = self._take() if self._member.needs_input else b""
        if not data and self._member.needs_input:
            raise EOFError("it ends too early")
        return self._member.decompress(data, OUTPUT)

    def close(self) -> None:
        self._member = None

    def _between(self) -> bytes | None:
        """Between two members: skip padding, begin the next member, or find the end."""
        data = self._take()
        if not data:
            return None
        self._ahead = data.lstrip(self._padding) if self._padding else data
        if self._ahead:
            self._member = self._make()
        return b""

    def _take(self) -> bytes:
        data, self._ahead = self._ahead, b""
        return data or self._compressed.read(INPUT) or b""


class _GzipMember:
    """One gzip member. The library reads a header only if all of it comes in one piece, so it is read here."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._body: igzip_lib.IgzipDecompressor | None = None

    @property
    def eof(self) -> bool:
        return self._body is not None and self._body.eof

    @property
    def needs_input(self) -> bool:
        return self._body is None or self._body.needs_input

    @property
    def unused_data(self) -> bytes:
        return b"" if self._body is None else self._body.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        if self._body is None:
            self._header += data
            length = gzip_header_length(self._header)
            if length is None:
                if len(self._header) > _MAX_HEADER:
                    raise ValueError(f"its header is longer than {_MAX_HEADER // 1024} KiB")
                return b""
            data = bytes(self._header[length:])
            self._header.clear()
            # "VER": it verifies the checksum and the length behind the body.
            self._body = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
        return self._body.decompress(data, max_length)


def gzip_header_length(data: bytes | bytearray) -> int | None:
    """Return the length of the gzip header at the beginning of ``data``; None if it does not end there (RFC 1952).

    Raises ValueError if there is none.
    """
    if data[:3] != b"\x1f\x8b\x08"[: len(data[:3])]:
        raise ValueError("other data follows the last member")
    if len(data) < 10:
        return None
    flags, position = data[3], 10
    if flags & 0xE0:
        raise ValueError("its header has unknown flags")
    if flags & 4:  # extra field
        position += 2 + int.from_bytes(data[10:12], "little")
    for flag in (8, 16):  # name, comment
        if flags & flag:
            end = data.find(b"\0", position)
            if end < 0:
                return None
            position = end + 1
    position += 2 if flags & 2 else 0  # checksum of the header
    return position if position <= len(data) else None


class _Zstd:
    """zstd frames, one after another; unlike the library's own reader it tells an early end from the end.

    A step goes on until there is output; ``compressed`` is asked for INPUT bytes at a time, and may raise to stop it.
    """

    def __init__(self, compressed: io.RawIOBase) -> None:
        self._compressed = compressed
        self._frames = ZstdFrames()
        self._reader: zstandard.ZstdDecompressionReader | None = zstandard.ZstdDecompressor(
            max_window_size=2**_WINDOW_LOG
        ).stream_reader(cast("IO[bytes]", _Source(self._pull)), read_size=INPUT, read_across_frames=True)

    def step(self) -> bytes | None:
        assert self._reader is not None
        block = self._reader.read(OUTPUT)
        if not block and not self._frames.at_boundary:
            raise EOFError("it ends too early")
        return block or None

    def close(self) -> None:
        self._reader = None

    def _pull(self, size: int) -> bytes:
        chunk = self._compressed.read(size) or b""
        self._frames.feed(chunk)
        return chunk


class _Source:
    """A function as the file-like object that zstandard reads."""

    def __init__(self, pull: Callable[[int], bytes]) -> None:
        self.read = pull
