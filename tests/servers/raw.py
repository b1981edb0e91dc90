"""An HTTP server that sends exactly the bytes of a test, valid or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]


Answer = Callable[[Request, trio.abc.Stream], Awaitable[None]]


@dataclass(slots=True)
class RawServer:
    """``url`` has no trailing slash. ``asked`` is set at the first request, ``hung_up`` when a connection has ended."""

    port: int
    scheme: str
    requests: list[Request] = field(default_factory=list)
    asked: trio.Event = field(default_factory=trio.Event)
    hung_up: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


def says(head: str, body: bytes = b"") -> Answer:
    """Return an answer that is always the same; ``head`` has its lines without the last empty one."""

    async def answer(_request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(response(head, body))

    return answer


def response(head: str, body: bytes = b"") -> bytes:
    lines = [line.strip() for line in head.strip().splitlines()]
    return "\r\n".join([f"HTTP/1.1 {lines[0]}", *lines[1:], "", ""]).encode() + body


def holds(content: bytes, etag: str = '"v1"') -> Answer:
    """Return an answer that serves one image correctly, with HEAD, ranges and If-Range."""

    async def answer(request: Request, stream: trio.abc.Stream) -> None:
        first, stop, status = 0, len(content), "200 OK"
        asked = request.headers.get("range")
        if asked and request.headers.get("if-range", etag) == etag:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, stop = int(begin), min(len(content), int(end) + 1 if end else len(content))
            status = f"206 Partial Content\nContent-Range: bytes {first}-{stop - 1}/{len(content)}"
            if first >= len(content):
                first, stop, status = 0, 0, f"416 No\nContent-Range: bytes */{len(content)}"
        body = b"" if request.method == "HEAD" else content[first:stop]
        head = f"{status}\nContent-Length: {stop - first}\nETag: {etag}\nAccept-Ranges: bytes"
        await stream.send_all(response(head, body))

    return answer


async def until_client_hangs_up(stream: trio.abc.Stream) -> None:
    """Send nothing more and wait until the client disconnects."""
    try:
        while await stream.receive_some(4096):
            pass
    except trio.BrokenResourceError:
        pass


@asynccontextmanager
async def raw_server(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Serve one request per connection with ``answer``, then close the connection."""

    async def attend(stream: trio.abc.Stream) -> None:
        try:
            request = await _read_request(stream)
            server.requests.append(request)
            server.asked.set()
            await answer(request, stream)
            if tls is None:
                await stream.aclose()
        except trio.BrokenResourceError:
            pass
        finally:
            server.hung_up.set()
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listen = (
            partial(trio.serve_tcp, attend, 0, host="127.0.0.1")
            if tls is None
            else partial(trio.serve_ssl_over_tcp, attend, 0, tls, host="127.0.0.1")
        )
        listeners = await nursery.start(listen)
        socket_listener = getattr(listeners[0], "transport_listener", listeners[0])
        server = RawServer(socket_listener.socket.getsockname()[1], "https" if tls else "http")
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


async def _read_request(stream: trio.abc.Stream) -> Request:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(4096)
        if not more:
            raise trio.BrokenResourceError
        data += bytes(more)
    lines = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return Request(method, target, headers)
