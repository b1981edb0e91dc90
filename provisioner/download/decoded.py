"""A source whose image is decoded as it arrives, for servers that compress on the fly although they are asked not to.

The label ``Content-Encoding: gzip`` does not say whether a file is stored compressed or was compressed for the
transfer. So the image's digest decides: what arrives is tried as it is, and decoded only if the digest does not match.
"""

from __future__ import annotations

import zlib
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from provisioner.contracts import MIB, ImageSource, ImageStream
from provisioner.contracts.source import closing_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from provisioner.contracts import ImageUrl, RemoteImage
    from provisioner.contracts.errors import EncodedDownloadError

LABELS = {"gzip", "x-gzip"}
# Bytes that one step returns at most, whatever the compressed ones stand for.
_OUTPUT = 1 * MIB
_GZIP = 16 + zlib.MAX_WBITS


class DecodedSource(ImageSource):
    """``source`` with the image at ``url`` decoded; checksum files are as they are.

    ``mismatch`` is the error of the attempt without decoding. It is raised if the image cannot be decoded.
    """

    def __init__(self, source: ImageSource, url: ImageUrl, mismatch: EncodedDownloadError) -> None:
        self._source = source
        self._url = url
        self.mismatch = mismatch

    def owns(self, url: ImageUrl) -> bool:
        return self._source.owns(url)

    def prefixes(self) -> Sequence[str]:
        return self._source.prefixes()

    def checksum_files(self) -> Sequence[str]:
        return self._source.checksum_files()

    async def stat(self, url: ImageUrl) -> RemoteImage:
        image = await self._source.stat(url)
        return decoded(image) if url == self._url else image

    @asynccontextmanager
    async def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        if url != self._url:
            async with self._source.open(url, start, stop, version) as stream:
                yield stream
            return
        async with self._source.open(url) as stream:
            yield _DecodedStream(stream, self.mismatch)


def decoded(image: RemoteImage) -> RemoteImage:
    """Return what is known about an image before it is decoded: size, validator and ranges are of the encoded bytes."""
    return replace(image, size=None, version=None, accepts_ranges=False)


class _DecodedStream(ImageStream):
    start = 0

    def __init__(self, encoded: ImageStream, mismatch: EncodedDownloadError) -> None:
        self._encoded = encoded
        self._mismatch = mismatch

    async def __aiter__(self) -> AsyncIterator[bytes]:
        decoder = zlib.decompressobj(_GZIP)
        async with closing_chunks(self._encoded) as chunks:
            async for chunk in chunks:
                while chunk or decoder.unconsumed_tail:
                    piece = await self._step(decoder, decoder.unconsumed_tail or chunk)
                    chunk = b""  # noqa: PLW2901 - the decoder has it
                    if piece:
                        yield piece
                    if decoder.eof and decoder.unused_data:  # gzip files may be concatenated
                        chunk, decoder = decoder.unused_data, zlib.decompressobj(_GZIP)  # noqa: PLW2901
        if not decoder.eof:
            raise self._mismatch

    async def _step(self, decoder: zlib._Decompress, data: bytes) -> bytes:
        try:
            return await trio.to_thread.run_sync(decoder.decompress, data, _OUTPUT)
        except zlib.error as error:
            raise self._mismatch from error
