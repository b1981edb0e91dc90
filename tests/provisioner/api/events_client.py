"""Reads server-sent events in tests."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import httpx
import trio


class Event(NamedTuple):
    kind: str
    data: dict
    id: str | None


def parse(block: str) -> Event | None:
    """Return the event of a block; None for comments and ``retry``."""
    fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
    if "event" not in fields:
        return None
    return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))


class Stream:
    """An open stream of events, read one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.blocks: list[str] = []
        self._events = self._read()

    async def _read(self):
        text = ""
        async for piece in self.response.aiter_text():
            text += piece
            *whole, text = text.split("\n\n")
            for block in whole:
                self.blocks.append(block)
                if (event := parse(block)) is not None:
                    yield event
        assert text == ""

    async def next(self, *, progress=False) -> Event:
        """Return the next event that is ``progress`` or not."""
        while ((event := await anext(self._events)).kind == "job.progress") is not progress:
            pass
        return event

    async def until(self, *kinds: str) -> list[Event]:
        """Return the events up to one of these kinds."""
        found = [await self.next()]
        while found[-1].kind not in kinds:
            found.append(await self.next())
        return found

    async def rest(self) -> list[Event]:
        """Return the events up to the end of the stream."""
        return [event async for event in self._events if event.kind != "job.progress"]

    async def close(self) -> None:
        """Close the connection, and end httpcore's generators, which cannot be closed from outside.

        Otherwise the garbage collector finds them during some later test, which then fails.
        """
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await self.response.extensions["network_stream"].aclose()
            with suppress(httpx.HTTPError, httpx.StreamError, AssertionError, trio.ClosedResourceError):
                async for _ in self._events:
                    pass


@asynccontextmanager
async def stream(url, path, token, *, http2=False, last=None, status=200, verify=True, local=None):
    """Open a stream, from the address ``local``; yield it."""
    headers = {"X-API-Token": token} if token else {}
    if last is not None:
        headers["Last-Event-ID"] = last
    transport = httpx.AsyncHTTPTransport(
        http1=not http2, http2=http2, trust_env=False, verify=verify, local_address=local
    )
    async with (
        httpx.AsyncClient(base_url=url, transport=transport, timeout=60) as client,
        client.stream("GET", path, headers=headers) as response,
    ):
        if response.status_code != status:
            raise AssertionError((response.status_code, await response.aread()))
        opened = Stream(response)
        try:
            yield opened
        finally:
            await opened.close()
