"""The conformance suite for image sources."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import RemoteChangedError, RemoteNotFoundError
from provisioner.contracts.testing.steps import raises
from provisioner.contracts.urls import ImageUrl

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from provisioner.contracts.source import ImageSource, ImageStream


class SourceConformance:
    """Tests for an image source: subclass it as ``Test...`` and override ``serve``."""

    content = bytes(range(256)) * 4096 + b"the end"
    """A little over 1 MiB, in which neighbouring bytes differ."""

    foreign_url = "https://not-configured.invalid/image.qcow2"
    """A url that the tested source must not own."""

    def serve(self, content: bytes) -> AbstractAsyncContextManager[tuple[ImageSource, str]]:
        """Run a real server with ``content``; yield a source configured for it, and the content's url."""
        raise NotImplementedError

    def absent_url(self, url: str) -> str:
        """Return a url of the same server that does not exist."""
        return f"{url}-is-not-there"

    async def test_owns_configured_urls_only(self) -> None:
        async with self.serve(self.content) as (source, url):
            assert source.owns(ImageUrl.parse(url))
            assert not source.owns(ImageUrl.parse(self.foreign_url))

    async def test_stat_returns_size(self) -> None:
        async with self.serve(self.content) as (source, url):
            image = await source.stat(ImageUrl.parse(url))
            assert image.url.text == url
            assert image.size in {None, len(self.content)}

    async def test_open_yields_all_bytes(self) -> None:
        async with self.serve(self.content) as (source, url), source.open(ImageUrl.parse(url)) as stream:
            assert stream.start == 0
            assert await read(stream) == self.content

    async def test_open_range(self) -> None:
        async with self.serve(self.content) as (source, url):
            ranges = (await source.stat(ImageUrl.parse(url))).accepts_ranges
            async with source.open(ImageUrl.parse(url), 1000, 5001) as stream:
                assert stream.start == (1000 if ranges else 0)
                data = await read(stream)
            # Without ranges, the source may or may not stop early.
            assert data == self.content[1000:5001] if ranges else data in {self.content, self.content[:5001]}

    async def test_save_writes_at_offsets(self, tmp_path: Path) -> None:
        path, ends = tmp_path / "saved", list[int]()
        async with self.serve(self.content) as (source, url):
            start = 4096 if (await source.stat(ImageUrl.parse(url))).accepts_ranges else 0
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                async with source.open(ImageUrl.parse(url), start) as stream:
                    assert await stream.save(fd, ends.append) == len(self.content)
                assert os.pread(fd, len(self.content) + 1, start) == self.content[start:]
            finally:
                os.close(fd)
        assert ends == sorted(ends)
        assert ends[-1] == len(self.content)

    async def test_missing_image(self) -> None:
        async with self.serve(self.content) as (source, url):
            with raises(RemoteNotFoundError):
                await source.stat(ImageUrl.parse(self.absent_url(url)))
            with raises(RemoteNotFoundError):
                async with source.open(ImageUrl.parse(self.absent_url(url))) as stream:
                    await read(stream)

    async def test_open_other_version(self) -> None:
        async with self.serve(self.content) as (source, url):
            version = (await source.stat(ImageUrl.parse(url))).version
            async with source.open(ImageUrl.parse(url), version=version) as stream:
                assert await read(stream) == self.content
            if version is not None:
                with raises(RemoteChangedError):
                    async with source.open(ImageUrl.parse(url), version='"another"') as stream:
                        await read(stream)

    async def test_strong_version_is_that_of_stat(self) -> None:
        async with self.serve(self.content) as (source, url), source.open(ImageUrl.parse(url)) as stream:
            strong, by_digest = stream.strong_version, source.by_digest
            assert await read(stream) == self.content
            assert strong is None or by_digest or strong == (await source.stat(ImageUrl.parse(url))).version

    async def test_open_concurrently(self) -> None:
        async def one() -> None:
            async with source.open(ImageUrl.parse(url)) as stream:
                assert await read(stream) == self.content

        async with self.serve(self.content) as (source, url), trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)

    async def test_open_after_cancelled_transfer(self) -> None:
        async with self.serve(self.content) as (source, url):
            with trio.CancelScope() as scope:
                async with source.open(ImageUrl.parse(url)) as stream, _chunks(stream) as chunks:
                    async for _ in chunks:
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            async with source.open(ImageUrl.parse(url)) as stream:
                assert await read(stream) == self.content


async def read(stream: ImageStream) -> bytes:
    """Return all bytes of ``stream``."""
    return b"".join([chunk async for chunk in stream])


@asynccontextmanager
async def _chunks(stream: ImageStream) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over ``stream`` and close the iterator if it is a generator."""
    chunks = aiter(stream)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
