"""Reads parts of an image ahead of the download, by requests of their own: tables near the end of the file.

Whoever reads them works with bytes that no digest covers yet. They are remembered, and held against the image's own
once all of it is there: before that nothing that was made of them may be committed.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts import MIB
from provisioner.contracts.errors import RemoteChangedError, SourceError
from provisioner.contracts.source import closing_chunks

if TYPE_CHECKING:
    from provisioner.contracts import ImageSource, RemoteImage
    from provisioner.download.growing_file import GrowingFile

log = structlog.get_logger(__name__)

# What is as near as this comes by itself about as soon as an answer would.
NEAR = 16 * MIB
# The largest table a converter reads in one go, and how many it may ask for: an image made to send the server requests
# without end is read in its own order after that.
MOST_BYTES = 32 * MIB
MOST_PARTS = 64
# Seconds a part may take; the download goes on meanwhile.
LONGEST = 10.0


class ReadAhead:
    """The early parts of one download."""

    def __init__(self, source: ImageSource, remote: RemoteImage, growing_file: GrowingFile) -> None:
        self._source = source
        self._remote = remote
        self._growing_file = growing_file
        # Without a version nothing says that both requests are answered from the same image.
        self._left = MOST_PARTS if remote.accepts_ranges and remote.version is not None else 0
        self._parts: list[tuple[int, int, bytes]] = []

    async def read(self, start: int, stop: int) -> bytes | None:
        """The bytes ``[start, stop)``; None where it is better, or the only way, to wait for them."""
        if not self._left or start < self._growing_file.available + NEAR or stop - start > MOST_BYTES:
            return None
        self._left -= 1
        data = await self._fetch(start, stop)
        if data is None or self._growing_file.available >= stop:  # where the image's own came meanwhile, they are read
            return None
        self._parts.append((start, stop, hashlib.sha256(data).digest()))
        return data

    async def _fetch(self, start: int, stop: int) -> bytes | None:
        data = bytearray()
        try:
            with trio.move_on_after(LONGEST):
                async with self._source.open(self._remote.url, start, stop, self._remote.version) as stream:
                    if stream.start == start:
                        async with closing_chunks(stream) as chunks:
                            async for chunk in chunks:
                                data += chunk if len(data) <= stop - start else b""
        except SourceError as error:  # the download itself will tell whether that is serious
            log.info("a part of the image could not be fetched ahead", reason=error.message)
        if len(data) == stop - start:
            return bytes(data)
        self._left = 0  # the server ignores ranges, is slow, or refuses: not worth a second try
        return None

    def check(self, fd: int) -> None:
        """Blocking: raise RemoteChangedError where a part differs from the image in ``fd``, which is complete."""
        for start, stop, digest in self._parts:
            if hashlib.sha256(os.pread(fd, stop - start, start)).digest() != digest:
                raise RemoteChangedError("the server sent other bytes for a part of the image than for the whole")
