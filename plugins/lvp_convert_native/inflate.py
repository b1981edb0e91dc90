"""Decompresses single qcow2 clusters: libdeflate for deflate, zstandard for zstd; both release the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_convert_native.qcow2_header import Compression
from provisioner.contracts.errors import CorruptImageError

if TYPE_CHECKING:
    from collections.abc import Callable

# A frame may ask its reader for a window; QEMU's own never need more than a cluster, 2 MiB at most.
_ZSTD_WINDOW = 8 * 1024**2

_WRONG = "a compressed qcow2 cluster does not hold one cluster of data"


def inflater(compression: Compression, cluster_size: int) -> Callable[[memoryview], bytes | bytearray]:
    """A function, for one thread, that turns a span of the file into a cluster's bytes.

    The stream may end before the span does. It raises CorruptImageError where the stream is broken or gives
    more or less than ``cluster_size`` bytes; memory is bounded whatever the stream says.
    """
    return _zstd(cluster_size) if compression is Compression.ZSTD else _zlib(cluster_size)


def _zlib(cluster_size: int) -> Callable[[memoryview], bytes | bytearray]:
    # Of the libraries that inflate it is the quickest here: 520 MB/s a core, ISA-L 430, zlib 180. It writes into
    # one buffer of the size given and has no other memory.
    from deflate import DeflateError, deflate_decompress

    def inflate(span: memoryview) -> bytes | bytearray:
        try:
            data = deflate_decompress(span, cluster_size)
        except DeflateError as error:
            raise CorruptImageError(_WRONG) from error
        if len(data) != cluster_size:
            raise CorruptImageError(_WRONG)
        return data

    return inflate


def _zstd(cluster_size: int) -> Callable[[memoryview], bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)

    def inflate(span: memoryview) -> bytes:
        try:
            if zstandard.frame_content_size(span) not in {-1, cluster_size}:
                raise CorruptImageError(_WRONG)
            data = decompressor.decompress(span, max_output_size=cluster_size)
        except zstandard.ZstdError as error:
            raise CorruptImageError(f"{_WRONG}: {error}") from error
        if len(data) != cluster_size:
            raise CorruptImageError(_WRONG)
        return data

    return inflate
