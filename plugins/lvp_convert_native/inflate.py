"""One compressed qcow2 cluster to its bytes: ISA-L for deflate, zstandard for zstd; both let other threads run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_convert_native.qcow2_header import Compression
from provisioner.contracts.errors import CorruptImageError

if TYPE_CHECKING:
    from collections.abc import Callable

# What one cluster may take while it is inflated in one go: deflate makes 1032 bytes of one at most.
_MAX_OUTPUT = 64 * 1024**2
_DEFLATE_BEST = 1032
# A frame may ask its reader for a window; QEMU's own never need more than a cluster, 2 MiB at most.
_ZSTD_WINDOW = 8 * 1024**2

_WRONG = "a compressed qcow2 cluster does not hold one cluster of data"


def inflater(compression: Compression, cluster_size: int) -> Callable[[memoryview], bytes]:
    """A function, for one thread, that turns a span of the file into a cluster's bytes.

    The stream may end before the span does. It raises CorruptImageError where the stream is broken or gives
    more or less than ``cluster_size`` bytes; memory is bounded whatever the stream says.
    """
    return _zstd(cluster_size) if compression is Compression.ZSTD else _zlib(cluster_size)


def _zlib(cluster_size: int) -> Callable[[memoryview], bytes]:
    from isal import igzip_lib, isal_zlib

    broken: type[Exception] = isal_zlib.error  # type: ignore[assignment] # its stub has an instance for the class

    def inflate(span: memoryview) -> bytes:
        try:
            if len(span) * _DEFLATE_BEST <= _MAX_OUTPUT:  # a tenth quicker: the output grows in no steps
                data = igzip_lib.decompress(span, igzip_lib.DECOMP_DEFLATE, 15, cluster_size)
                whole = True
            else:
                stream = isal_zlib.decompressobj(-15)
                data = stream.decompress(span, cluster_size)
                whole = stream.eof or not stream.decompress(stream.unconsumed_tail, 1)
        except (broken, EOFError) as error:
            raise CorruptImageError(f"{_WRONG}: {error}") from error
        if len(data) != cluster_size or not whole:
            raise CorruptImageError(_WRONG)
        return bytes(data)

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
