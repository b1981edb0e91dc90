"""Interface of image sources, which fetch images from servers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from provisioner.contracts.types import RemoteImage
    from provisioner.contracts.urls import ImageUrl


class ImageStream(ABC):
    """The bytes of one image from an offset on, while the connection is open.

    ``start`` is the offset of the first byte (0 if the server ignored the requested range). ``content_encoding`` is how
    the server labels the bytes, in lower case, None if it does not. ``strong_version`` is the version that ``stat``
    returns for the same bytes and for no others; None if the server has no such tag, or may change the bytes without
    changing it because they were written in the same second.
    """

    start: int
    content_encoding: str | None = None
    strong_version: str | None = None

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes in order. Raises RemoteUnavailableError if they end early or stall."""

    async def save(self, fd: int, report: Callable[[int], None]) -> int:
        """Write all bytes to ``fd`` at their offsets and return the end offset.

        ``report(end)`` is called from any thread with the offset up to which bytes are written; it is cheap and never
        blocks. Override this if there is a faster way than iterating.
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

    Several tasks may call every method concurrently. All methods raise SourceError or a subclass:
    RemoteNotFoundError and RemoteDeniedError are permanent, after RemoteUnavailableError a retry may help.

    ``by_digest``: an image's version is its digest, as in a registry, so no checksum file is looked for.
    ``parallel_ranges``: over how many connections one image may be fetched if a single one is slow.
    """

    by_digest: bool = False
    parallel_ranges: int = 1

    @abstractmethod
    def owns(self, url: ImageUrl) -> bool:
        """Return whether this source is configured for ``url``. Pure and fast; False if in doubt."""

    def prefixes(self) -> Sequence[str]:
        """Return the beginnings of the urls it owns, for people. Without secrets; empty if it does not say."""
        return ()

    def checksum_files(self) -> Sequence[str]:
        """Return patterns of checksum files' urls to look for before the usual ones.

        ``{dir}`` is the image's folder, ``{parent}`` the folder above it, ``{name}`` the image's file name.
        """
        return ()

    @abstractmethod
    async def stat(self, url: ImageUrl) -> RemoteImage:
        """Return the image's size and version without fetching the image."""

    @abstractmethod
    def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AbstractAsyncContextManager[ImageStream]:
        """Open the bytes ``[start, stop)`` of ``url``; ``stop=None`` means to the end.

        If the server no longer has ``version``, RemoteChangedError is raised on opening or at the latest when the
        bytes end.
        """

    async def aclose(self) -> None:
        """Close connections. Called once, at shutdown."""


@asynccontextmanager
async def closing_chunks(stream: ImageStream) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over ``stream`` and close the iterator if it is a generator: trio warns about unfinished ones."""
    chunks = aiter(stream)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``, continuing after short writes. Blocking: call it in a thread."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
