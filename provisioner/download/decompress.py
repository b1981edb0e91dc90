"""Compressed and archived images: decompress the beginning, or everything within limits.

The cache keeps the file as the server has it, still compressed; converters work on the decompressed bytes. Nothing that
a compressed file claims is trusted: output, memory, disk space and the work between two cancel checks are bounded.
"""

from __future__ import annotations

import errno
import io
import os
import re
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts import MIB, ByteSize, pwrite_all
from provisioner.contracts.errors import CacheError, CacheFullError, CorruptImageError, ImageTooLargeError
from provisioner.download.decompressors import FAULTS, INPUT, MEMORY, OUTPUT, WINDOW, Decompressor
from provisioner.download.wrappers import ARCHIVES, names, unpacker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = structlog.get_logger(__name__)

_ZEROS = bytes(OUTPUT)
# Bytes written between two checks of the file system's free space.
_SPACE_STEP = 64 * MIB


def beginning_of(compression: str, compressed: bytes, most: int, check: Callable[[], None] = lambda: None) -> bytes:
    """Return the first decompressed bytes, at most ``most``, of a file that begins with ``compressed``.

    ``check`` may raise to stop. Raises CorruptImageError.
    """
    inside = bytearray()
    try:
        with _blocks(compression, _Input(io.BytesIO(compressed), check), check) as blocks:
            for block in blocks:
                inside += block
                if len(inside) >= most:
                    break
    except EOFError:
        pass  # the file continues after ``compressed``
    except FAULTS as error:
        if not inside:
            raise _corrupt(compression, error) from error
    return bytes(inside[:most])


def decompress(
    compression: str,
    compressed: io.RawIOBase,
    fd: int,
    limit: int,
    min_free: int,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Decompress all of ``compressed`` into the empty file ``fd``, sparsely; return the number of decompressed bytes.

    ``limit``: maximum of decompressed bytes; ``min_free``: bytes to keep free on the file system. ``check`` is called
    between bounded pieces of work and may raise to stop. Blocking. Raises ImageTooLargeError, CorruptImageError,
    CacheFullError, CacheError, and any error from reading ``compressed``.
    """
    size = space_checked = 0
    source = _Input(compressed, check)
    try:
        with _blocks(compression, source, check, _log_ignored) as blocks:
            for block in blocks:
                if size + len(block) > limit:
                    fits = ByteSize(limit // MIB * MIB or limit)
                    raise ImageTooLargeError(
                        f"the {compression} image decompresses to more than the {fits} that would fit; "
                        "ask for a larger volume, or leave out its size"
                    )
                with _disk_errors():
                    if size >= space_checked:
                        _check_space(fd, min_free)
                        space_checked = size + _SPACE_STEP
                    if block != _ZEROS[: len(block)]:
                        pwrite_all(fd, block, size)
                size += len(block)
    except FAULTS as error:
        if error is source.error:
            raise
        raise _corrupt(compression, error) from error
    with _disk_errors():
        os.ftruncate(fd, size)
    return size


@contextmanager
def _blocks(
    compression: str, compressed: _Input, check: Callable[[], None], ignored: Callable[[], None] = lambda: None
) -> Iterator[Iterator[bytes]]:
    """Provide the decompressed bytes in pieces of at most OUTPUT; free the memory at the end of the context."""

    def blocks() -> Iterator[bytes]:
        while (block := _step(stream)) is not None:
            check()
            if block:
                yield block

    with closing(unpacker(compression, compressed, ignored)) as stream:
        yield blocks()


def _log_ignored() -> None:
    log.warning("bytes after the last gzip member of the image are ignored")


def _step(stream: Decompressor) -> bytes | None:
    try:
        return stream.step()
    except MemoryError as error:
        raise CacheError("the host does not have enough memory to decompress the image") from error


class _Input(io.RawIOBase):
    """The compressed bytes in small pieces; calls ``check`` before each one. Keeps a read error in ``error``."""

    def __init__(self, compressed: io.RawIOBase | io.BytesIO, check: Callable[[], None]) -> None:
        super().__init__()
        self._compressed = compressed
        self._check = check
        self.error: OSError | None = None

    def read(self, size: int = -1, /) -> bytes:
        self._check()
        try:
            return self._compressed.read(INPUT if size < 0 else min(size, INPUT)) or b""
        except OSError as error:
            self.error = error
            raise


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise CacheFullError("the cache's file system has no room to decompress the image") from error
        raise CacheError(f"the decompressed image cannot be written to the cache: {error.strerror}") from error


def _check_space(fd: int, min_free: int) -> None:
    status = os.fstatvfs(fd)
    if status.f_bavail * status.f_frsize < min_free:
        raise CacheFullError("the cache's file system has no room to decompress the image")


def _corrupt(compression: str, error: Exception) -> CorruptImageError:
    if re.search(r"[Mm]emory", str(error)):
        limit, advice = (WINDOW, "zstd --long=27") if names(compression)[-1] == "zst" else (MEMORY, "xz -9")
        return CorruptImageError(
            f"the image cannot be decompressed ({compression}): it needs more than {limit // MIB} MiB of memory; "
            f"compress it with {advice} or less"
        )
    verb = "extracted" if names(compression)[-1] in ARCHIVES else "decompressed"
    return CorruptImageError(f"the image cannot be {verb} ({compression}): {error}")
