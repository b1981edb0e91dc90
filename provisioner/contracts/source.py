"""Image sources: where the bytes of an image come from. Owns the interface, no transport."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from provisioner.contracts.types import RemoteImage
    from provisioner.contracts.urls import ImageUrl


class ImageStream(ABC):
    """The bytes of one image from one offset on, while the connection is open.

    ``start`` is the offset of the first byte that comes (0 where the server ignored the range asked for).
    """

    start: int

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes in order. Raises RemoteUnavailableError when they end too early or stall."""

    async def save(self, fd: int, report: Callable[[int], None]) -> int:
        """Write all bytes to ``fd`` at their own offsets; return the offset after the last.

        ``report(end)`` is called, from any thread, with the offset up to which bytes are written; it is
        cheap and never blocks. Override this where a faster way than iterating exists.
        """
        offset = self.start
        async with closing_chunks(self) as chunks:
            async for chunk in chunks:
                await trio.to_thread.run_sync(pwrite_all, fd, chunk, offset)
                offset += len(chunk)
                report(offset)
        return offset


class ImageSource(ABC):
    """Fetches images for the urls it owns.

    Every method may be called by several tasks at once. All raise SourceError and its kin: RemoteNotFoundError
    and RemoteDeniedError for good, RemoteUnavailableError where trying again may help.
    """

    @abstractmethod
    def owns(self, url: ImageUrl) -> bool:
        """Whether this source is configured for ``url``. Pure, quick, and never wrong on the generous side."""

    @abstractmethod
    async def stat(self, url: ImageUrl) -> RemoteImage:
        """Ask the server for size and version without fetching the image."""

    @abstractmethod
    def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AbstractAsyncContextManager[ImageStream]:
        """Open the bytes ``[start, stop)`` of ``url``; ``stop=None`` means to the end.

        With ``version`` the server must still hold that version, else RemoteChangedError is raised, on opening
        or at the latest when the bytes end.
        """

    async def aclose(self) -> None:
        """Close connections. Called once, at the end."""


@asynccontextmanager
async def closing_chunks(stream: ImageStream) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over ``stream``; close the iterator if it is a generator: one left in the middle is an error in trio."""
    chunks = aiter(stream)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; a short write is carried on. Blocking: call it in a thread."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
