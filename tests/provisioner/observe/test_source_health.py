"""A source that does not answer is noticed from the requests of jobs alone."""

from __future__ import annotations

from contextlib import suppress

import trio

from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import RemoteNotFoundError, RemoteUnavailableError
from provisioner.contracts.testing import FakeSource
from provisioner.observe.source_health import HUNG_AFTER, REMEMBERED, SourceHealth

URL = ImageUrl.parse("https://images.example.org/a.raw")


class Server:
    """A source whose next requests end as told: an error to raise, "hang" or "break" (after the first byte)."""

    def __init__(self, *ends):
        self.ends = list(ends)
        self.inner = FakeSource({URL.text: b"x" * 10})

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def _end(self):
        end = self.ends.pop(0) if self.ends else None
        if end == "hang":
            await trio.sleep_forever()
        if isinstance(end, Exception):
            raise end
        return end

    async def stat(self, url):
        await self._end()
        return await self.inner.stat(url)

    def open(self, url, start=0, stop=None, version=None):
        return self.inner.open(url, start, stop, version)


GONE = RemoteUnavailableError(f"{URL} cannot be reached")


async def ask(source):
    with suppress(RemoteUnavailableError, RemoteNotFoundError):
        await source.stat(URL)


async def test_source_that_answers(autojump_clock):
    source = SourceHealth(Server())
    assert source.problem() is None
    await ask(source)
    async with source.open(URL) as stream:
        assert b"".join([chunk async for chunk in stream]) == b"x" * 10
    assert source.problem() is None
    assert source.owns(URL)


async def test_source_that_fails(autojump_clock):
    source = SourceHealth(Server(GONE, GONE, RemoteNotFoundError("no such image")))
    await ask(source)
    await ask(source)
    await trio.sleep(60)
    assert source.problem() == "its server did not answer 2 times in a row, last 60 s ago; see the log"
    await ask(source)  # a refusal is an answer
    assert source.problem() is None


async def test_failure_is_forgotten(autojump_clock):
    source = SourceHealth(Server(GONE))
    await ask(source)
    await trio.sleep(REMEMBERED)
    assert source.problem() is None


async def test_source_that_hangs(autojump_clock):
    source = SourceHealth(Server("hang"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, source)
        await trio.sleep(HUNG_AFTER - 1)
        assert source.problem() is None
        await trio.sleep(11)
        assert source.problem() == "no answer for 40 s"
        nursery.cancel_scope.cancel()
    assert source.problem() is None


async def test_transfer_that_breaks(autojump_clock):
    source = SourceHealth(Server())
    with suppress(RemoteUnavailableError):
        async with source.open(URL):
            assert source.problem() is None
            raise RemoteUnavailableError("the transfer broke")
    assert "did not answer once" in source.problem()
