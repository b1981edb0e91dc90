"""Fetches parts of an image ahead of the download with separate requests, such as tables near the end of the file.

No digest covers these bytes yet. ``check`` compares them with the downloaded image; nothing derived from them may be
committed before.
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

# The download delivers bytes this close about as soon as a separate request would.
NEAR = 16 * MIB
# The largest table a converter reads at once, and how many requests it may make: a hostile image must not cause endless
# requests. After that, the converter waits for the download.
MOST_BYTES = 32 * MIB
MOST_PARTS = 64
# Seconds a part may take; the download continues in the meantime.
LONGEST = 10.0


class ReadAhead:
    """The parts of one download that were fetched ahead."""

    def __init__(self, source: ImageSource, remote: RemoteImage, growing_file: GrowingFile) -> None:
        self._source = source
        self._remote = remote
        self._growing_file = growing_file
        self._left = MOST_PARTS if remote.accepts_ranges else 0
        self._parts: list[tuple[int, int, bytes]] = []

    async def read(self, start: int, stop: int) -> bytes | None:
        """Return the bytes ``[start, stop)``, or None if the caller should wait for the download instead."""
        if not self._left or start < self._growing_file.available + NEAR or stop - start > MOST_BYTES:
            return None
        self._left -= 1
        data = await self._fetch(start, stop)
        if data is None or self._growing_file.available >= stop:  # already downloaded: use those
            return None
        self._parts.append((start, stop, hashlib.sha256(data).digest()))
        return data

    async def _fetch(self, start: int, stop: int) -> bytes | None:
        data = bytearray()
        try:
            with trio.move_on_after(LONGEST):
                url = self._remote.pinned or self._remote.url
                async with self._source.open(url, start, stop, self._remote.version) as stream:
                    if stream.start == start:
                        async with closing_chunks(stream) as chunks:
                            async for chunk in chunks:
                                data += chunk if len(data) <= stop - start else b""
        except SourceError as error:  # if it is serious, the download fails too
            log.info("read-ahead of a part of the image failed", reason=error.message)
        if len(data) == stop - start:
            return bytes(data)
        self._left = 0  # the server ignores ranges, is slow or fails: do not try again
        return None

    def check(self, fd: int) -> None:
        """Raise RemoteChangedError if a part differs from the complete image in ``fd``. Blocking."""
        for start, stop, digest in self._parts:
            if hashlib.sha256(os.pread(fd, stop - start, start)).digest() != digest:
                raise RemoteChangedError("the server sent different bytes in a range request than in the whole image")
