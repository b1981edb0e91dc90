"""Decompressors that work in bounded steps: gz, xz, lzma, bz2, lz4 and zstd, with any number of members or frames.

A step reads at most ``INPUT`` compressed bytes and returns at most ``OUTPUT``, so a cancel takes effect between two
steps whatever the file contains. Memory is bounded too. A malformed file raises one of ``FAULTS``.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import IO, TYPE_CHECKING, Protocol, cast

import lz4.frame
import zstandard
from isal import igzip_lib

from provisioner.contracts import MIB
from provisioner.download.zstd_frames import ZstdFrames

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

# Files that need more than this are rejected, to keep the daemon below 288 MiB. xz -9 needs 65 MiB to decompress;
# zstd -22 and zstd --long have a window of 128 MiB, which is also the most that the zstd tool accepts unless told.
MEMORY = 96 * MIB
WINDOW = 128 * MIB
OUTPUT = 1 * MIB
# A file of empty members has thousands of them per MiB, and each one copies the input that follows it.
INPUT = 64 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
# A gzip header may contain a file name and a comment of any length. A longer header is treated as an attack.
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
        """Do a bounded piece of work; return output, ``b""`` if none yet, None at the end. Raises FAULTS."""

    def close(self) -> None:
        """Free the memory now: the traceback of a raised error still references this object."""


def decompressor(compression: str, compressed: io.RawIOBase, ignored: Callable[[], None]) -> Decompressor:
    """Return a decompressor that reads ``compressed``; compressions are those of ``wrappers``.

    ``ignored`` is called if the file ends with bytes that are not used.
    """
    if compression == "gz":
        return _Members(compressed, _GzipMember, padding=b"\0", magic=_GZIP_MAGIC, ignored=ignored)
    if compression == "xz":
        return _Members(compressed, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY), padding=b"\0")
    if compression == "lzma":
        return _Members(compressed, lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MEMORY))
    if compression == "bz2":
        return _Members(compressed, bz2.BZ2Decompressor)
    if compression == "lz4":
        return _Members(compressed, _Lz4Frame)
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
    """A sequence of members (xz and bz2: streams, lz4: frames), optionally separated by ``padding``.

    Other data after the last member is an error. But if members begin with ``magic``, data that does not is ignored as
    gzip(1) does: OpenWrt publishes such images. The libraries' own readers do not limit memory (xz), ignore data after
    the last member (bz2), or process any number of empty members in one call (gz).
    """

    def __init__(
        self,
        compressed: io.RawIOBase,
        make: Callable[[], _Member],
        padding: bytes = b"",
        *,
        magic: bytes = b"",
        ignored: Callable[[], None] = lambda: None,
    ) -> None:
        self._compressed = compressed
        self._make = make
        self._padding = padding
        self._magic = magic
        self._ignored = ignored
        self._ignoring = False
        self._member: _Member | None = make()
        self._ahead = b""  # read, but not passed to a member yet

    def step(self) -> bytes | None:
        if self._member is None:
            return self._between()
        if self._member.eof:
            self._ahead = self._member.unused_data + self._ahead
            self._member = None
            return b""
        data = self._take() if self._member.needs_input else b""
        if not data and self._member.needs_input:
            raise EOFError("the file ends too early")
        return self._member.decompress(data, OUTPUT)

    def close(self) -> None:
        self._member = None

    def _between(self) -> bytes | None:
        """Skip padding after a member, then start the next member or detect the end."""
        data = self._take()
        if not data:
            return None
        if self._ignoring:
            return b""
        self._ahead = data.lstrip(self._padding) if self._padding else data
        if not self._ahead:
            return b""
        if len(self._ahead) < len(self._magic):
            self._ahead += self._compressed.read(INPUT) or b""
        if self._ahead.startswith(self._magic):
            self._member = self._make()
        else:
            self._ignoring = True
            self._ignored()
        return b""

    def _take(self) -> bytes:
        data, self._ahead = self._ahead, b""
        return data or self._compressed.read(INPUT) or b""


class _GzipMember:
    """One gzip member. The library parses a header only if it arrives in one piece, so the header is parsed here."""

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
                    raise ValueError(f"the gzip header is longer than {_MAX_HEADER // 1024} KiB")
                return b""
            data = bytes(self._header[length:])
            self._header.clear()
            # "VER": verify the checksum and the length that follow the body.
            self._body = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
        return self._body.decompress(data, max_length)


def gzip_header_length(data: bytes | bytearray) -> int | None:
    """Return the length of the gzip header (RFC 1952) that ``data`` starts with; None if it is incomplete.

    Raises ValueError if ``data`` does not start with a valid header.
    """
    if data[:3] != b"\x1f\x8b\x08"[: len(data[:3])]:
        raise ValueError("other data follows the last gzip member")
    if len(data) < 10:
        return None
    flags, position = data[3], 10
    if flags & 0xE0:
        raise ValueError("the gzip header has unknown flags")
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


class _Lz4Frame:
    """One lz4 frame, which may be a skippable one. The library reports errors as RuntimeError."""

    def __init__(self) -> None:
        self._frame = lz4.frame.LZ4FrameDecompressor()

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def needs_input(self) -> bool:
        return bool(self._frame.needs_input)

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data or b""

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        try:
            return bytes(self._frame.decompress(data, max_length))
        except RuntimeError as error:
            reason = str(error).rpartition("ERROR_")[2]
            raise ValueError(f"a frame is damaged ({reason})") from error


class _Zstd:
    """A sequence of zstd frames; unlike the library's own reader, it detects a truncated file.

    A step runs until there is output. It reads INPUT bytes at a time; ``compressed`` may raise to stop it.
    """

    def __init__(self, compressed: io.RawIOBase) -> None:
        self._compressed = compressed
        self._frames = ZstdFrames()
        self._reader: zstandard.ZstdDecompressionReader | None = zstandard.ZstdDecompressor(
            max_window_size=WINDOW
        ).stream_reader(cast("IO[bytes]", _Source(self._pull)), read_size=INPUT, read_across_frames=True)

    def step(self) -> bytes | None:
        assert self._reader is not None
        block = self._reader.read(OUTPUT)
        if not block and not self._frames.at_boundary:
            raise EOFError("the file ends too early")
        return block or None

    def close(self) -> None:
        self._reader = None

    def _pull(self, size: int) -> bytes:
        chunk = self._compressed.read(size) or b""
        self._frames.feed(chunk)
        return chunk


class _Source:
    """A function wrapped as the file-like object that zstandard expects."""

    def __init__(self, pull: Callable[[int], bytes]) -> None:
        self.read = pull
