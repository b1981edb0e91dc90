"""Request bodies that a route reads itself as they arrive, so that a client sends no faster than the route reads.

Quart collects a body in memory at the speed of the network. For the requests that ``is_streamed`` names, quart gets an
empty body, and the route takes the real one from ``streamed_body``. While the route does not read, hypercorn's queue of
ten pieces fills and it stops reading from the socket: TCP's and HTTP/2's flow control then hold the client back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from provisioner.contracts.errors import BodyTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGIReceiveEvent, ASGISendEvent, Scope

    Send = Callable[[ASGISendEvent], Awaitable[None]]

# While the route waits for the client, this much must arrive in each window: about 3 KiB/s, as for other requests.
WINDOW = 20.0
MIN_BYTES = 64 * 1024
# Bytes read at once: enough that passing them to a thread costs little.
PIECE = 256 * 1024
# Seconds to go on reading from a client that got its answer early. If the socket were closed with unread data, the
# client's system could drop the answer.
LINGER = 2.0
_KEY = "streamed_body"


class StreamedBody:
    """The body of one request."""

    def __init__(self, receive: ASGIReceiveCallable) -> None:
        self._receive = receive
        self._released = trio.Event()
        self._over = trio.Event()
        self._gone = False
        self._late = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come: the body has ended, or the client has gone."""
        return self._over.is_set()

    async def read(self) -> bytes:
        """Return the next bytes, at least PIECE of them unless fewer are left; nothing at the end.

        Raises BodyTimeoutError if the client sends too slowly. If the client goes, what it has sent is returned, and
        then the request is cancelled.
        """
        piece = bytearray()
        while len(piece) < PIECE and not self.over and not self._late:
            enough = len(piece) + MIN_BYTES
            with trio.move_on_after(WINDOW) as scope:
                while len(piece) < enough and not self.over:
                    piece += await self._next()
            self._late = scope.cancelled_caught
        if not piece and self._late:
            raise BodyTimeoutError(f"less than {MIN_BYTES // 1024} KiB of the body arrived within {WINDOW:g} seconds")
        if not piece and self._gone:
            self.release()
            await trio.sleep_forever()
        return bytes(piece)

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            self._gone = True
            self._over.set()
            return b""
        if not message.get("more_body", False):
            self._over.set()
        return message.get("body", b"")

    def release(self) -> None:
        """Read no more: the rest of the body is dropped as it arrives."""
        self._released.set()

    async def ended(self) -> None:
        """Drop the rest of the body once it is released; return when the client has gone."""
        await self._released.wait()
        while not self._gone:
            await self._next()

    async def linger(self) -> None:
        """Wait a little for the end of a body that is being dropped."""
        with trio.move_on_after(LINGER):
            await self._over.wait()


class StreamedBodies:
    """An app whose routes read some bodies themselves. ``is_streamed`` gets a request's method and path."""

    def __init__(self, app: ASGIFramework, is_streamed: Callable[[str, str], bool]) -> None:
        self._app = app
        self._is_streamed = is_streamed

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: Send) -> None:
        if scope["type"] != "http" or not self._is_streamed(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        body, is_first = StreamedBody(receive), True
        # HTTP/2 drops the rest of one body without the others.
        may_be_unread = scope["http_version"] != "2" and _has_body(scope["headers"])
        state: Any = {**(scope.get("state") or {}), _KEY: body}

        async def receive_nothing() -> ASGIReceiveEvent:
            nonlocal is_first
            if is_first:
                is_first = False
                return {"type": "http.request", "body": b"", "more_body": False}
            await body.ended()
            return {"type": "http.disconnect"}

        async def send_early(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start":
                body.release()
                if not body.over and may_be_unread:
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                await body.linger()
            await send(message)

        streamed: Any = {**scope, "state": state}
        await self._app(streamed, receive_nothing, send_early)


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether an HTTP/1.1 request announces a body. The names are in lower case."""
    announced = {name: value for name, value in headers if name in {b"content-length", b"transfer-encoding"}}
    return bool(announced) and announced != {b"content-length": b"0"}


def streamed_body(scope: Any) -> StreamedBody:
    """Return the body of a request that is streamed, given its scope."""
    body = scope["state"][_KEY]
    assert isinstance(body, StreamedBody)
    return body
