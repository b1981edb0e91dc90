"""Splits a text into lines while it arrives: finds out its encoding, decompresses gzip, and bounds memory and work."""

from __future__ import annotations

import codecs
import zlib
from typing import TYPE_CHECKING

from provisioner.contracts import MIB
from provisioner.contracts.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The largest lists of distributions are a few MiB.
MAX_BYTES = 64 * MIB
# Bytes to split between two turns of the loop; parsing their lines takes a few milliseconds.
PIECE = 32 * 1024
# Longer lines are no lines of a checksum file; the rest counts as a line of its own.
MAX_LINE = 4096
_GZIP = b"\x1f\x8b\x08"
# Enough to recognize the encoding and gzip.
_HEAD = 4


class TextLines:
    """The lines of one text. Raises ImageError if it is a web page, too large, or damaged."""

    def __init__(self) -> None:
        self._head = b""
        self._inflate: zlib._Decompress | None = None
        self._decoder: codecs.IncrementalDecoder | None = None
        self._rest = ""
        self._bytes = 0
        self._begun = False

    def feed(self, chunk: bytes) -> Iterator[list[str]]:
        """Take bytes; yield the complete lines in small lists."""
        if self._decoder is None:
            self._head += chunk
            if len(self._head) < _HEAD:
                return
            chunk = self._start()
        for data in self._plain(chunk):
            yield self._lines(data)

    def end(self) -> list[str]:
        """Return the last lines, after all bytes."""
        lines = []
        if self._decoder is None:
            for data in self._plain(self._start()):
                lines += self._lines(data)
        return [*lines, self._rest]

    def _start(self) -> bytes:
        """Recognize gzip, and the encoding if it is not compressed; return the bytes kept so far."""
        head, self._head = self._head, b""
        if head.startswith(_GZIP):
            self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._decoder = codecs.getincrementaldecoder("utf-8" if self._inflate else _encoding(head))("replace")
        return head

    def _plain(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decompressed bytes, at most PIECE at a time."""
        if self._inflate is None:
            pieces: Iterator[bytes] = (chunk[at : at + PIECE] for at in range(0, len(chunk), PIECE))
        else:
            pieces = self._inflated(self._inflate, chunk)
        for piece in pieces:
            self._bytes += len(piece)
            if self._bytes > MAX_BYTES:
                raise ImageError(f"it is too large for a checksum file: more than {MAX_BYTES // MIB} MiB")
            yield piece

    @staticmethod
    def _inflated(inflate: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
        try:
            while chunk and not inflate.eof:
                yield inflate.decompress(chunk, PIECE)
                chunk = inflate.unconsumed_tail
        except zlib.error as error:
            raise ImageError("it is damaged: it cannot be decompressed") from error

    def _lines(self, data: bytes) -> list[str]:
        assert self._decoder is not None
        text = self._rest + self._decoder.decode(data)
        if not self._begun and text.strip("\ufeff \t\r\n"):
            self._begun = True
            if text.lstrip("\ufeff \t\r\n").startswith("<"):
                raise ImageError("it is a web page, not a list of digests")
        lines = text.splitlines()
        # The last line may continue, or its line break may be cut between "\r" and "\n", which is harmless.
        self._rest = lines.pop()[:MAX_LINE] if lines and not text.endswith(("\n", "\r")) else ""
        return lines


def _encoding(head: bytes) -> str:
    """Return the encoding that a byte order mark shows, or the zeros of ASCII in UTF-16."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head[1:2] == b"\0":
        return "utf-16-le"
    if head[:1] == b"\0":
        return "utf-16-be"
    return "utf-8-sig"
