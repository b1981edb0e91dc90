"""What every image source must pass."""

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
    """Subclass it, override ``serve``, name the subclass ``Test...``."""

    content = bytes(range(256)) * 4096 + b"the end"
    """1 MiB and a bit, in which every offset can be told from its neighbours."""

    foreign_url = "https://not-configured.invalid/image.qcow2"
    """A url that the source under test must not own."""

    def serve(self, content: bytes) -> AbstractAsyncContextManager[tuple[ImageSource, str]]:
        """Run a real server with ``content``; yield a source configured for it and the content's url."""
        raise NotImplementedError

    def absent_url(self, url: str) -> str:
        """A url of the same server under which there is nothing."""
        return f"{url}-is-not-there"

    async def test_owns_what_it_is_configured_for_and_nothing_else(self) -> None:
        async with self.serve(self.content) as (source, url):
            assert source.owns(ImageUrl.parse(url))
            assert not source.owns(ImageUrl.parse(self.foreign_url))

    async def test_stat_tells_the_size(self) -> None:
        async with self.serve(self.content) as (source, url):
            image = await source.stat(ImageUrl.parse(url))
            assert image.url.text == url
            assert image.size in {None, len(self.content)}

    async def test_gives_every_byte_in_order(self) -> None:
        async with self.serve(self.content) as (source, url), source.open(ImageUrl.parse(url)) as stream:
            assert stream.start == 0
            assert await read(stream) == self.content

    async def test_gives_a_range_or_starts_at_zero(self) -> None:
        async with self.serve(self.content) as (source, url):
            ranges = (await source.stat(ImageUrl.parse(url))).accepts_ranges
            async with source.open(ImageUrl.parse(url), 1000, 5001) as stream:
                assert stream.start == (1000 if ranges else 0)
                data = await read(stream)
            # Without ranges it is the source's choice whether it stops early.
            assert data == self.content[1000:5001] if ranges else data in {self.content, self.content[:5001]}

    async def test_saves_bytes_at_their_own_offsets(self, tmp_path: Path) -> None:
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

    async def test_says_when_there_is_no_such_image(self) -> None:
        async with self.serve(self.content) as (source, url):
            with raises(RemoteNotFoundError):
                await source.stat(ImageUrl.parse(self.absent_url(url)))
            with raises(RemoteNotFoundError):
                async with source.open(ImageUrl.parse(self.absent_url(url))) as stream:
                    await read(stream)

    async def test_refuses_another_version_than_the_one_begun_with(self) -> None:
        async with self.serve(self.content) as (source, url):
            version = (await source.stat(ImageUrl.parse(url))).version
            async with source.open(ImageUrl.parse(url), version=version) as stream:
                assert await read(stream) == self.content
            if version is not None:
                with raises(RemoteChangedError):
                    async with source.open(ImageUrl.parse(url), version='"another"') as stream:
                        await read(stream)

    async def test_serves_several_at_once(self) -> None:
        async def one() -> None:
            async with source.open(ImageUrl.parse(url)) as stream:
                assert await read(stream) == self.content

        async with self.serve(self.content) as (source, url), trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)

    async def test_is_usable_after_a_cancel_in_the_middle(self) -> None:
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
    """All the bytes of ``stream``."""
    return b"".join([chunk async for chunk in stream])


@asynccontextmanager
async def _chunks(stream: ImageStream) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over ``stream`` and close a generator where the iteration ends early."""
    chunks = aiter(stream)
    try:
        yield chunks
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
