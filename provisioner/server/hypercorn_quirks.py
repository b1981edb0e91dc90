"""Workarounds for hypercorn 0.18 and quart-trio 0.12, each with the upstream bug it works around.

``tests/provisioner/server/test_hypercorn_quirks.py`` shows every bug in the pinned versions. If a test there fails,
upstream has fixed the bug, and the workaround of the same number can be removed. While number 1, 2, 3, 8 or
9 is needed, ``pyproject.toml`` pins ``hypercorn<0.19``: ``HttpConnection`` overrides private methods of ``TCPServer``.

1. An error on one connection ends the server. ``trio/run.py`` serves every connection in one nursery and catches
   nothing: data for an HTTP/2 stream that has been answered is a KeyError (issue 329, pull requests 312 and 334), bytes
   after a websocket upgrade are an AttributeError (issue 225). ``connections.serving`` has its own accept loop and
   catches at each connection. ``_Streams`` drops such data, so that an answer may come before the end of a body.
2. The idle timer stops for good at the first line of HTTP/2 without TLS (``protocol/h11.py``, ``_handle_events`` sends
   ``Updated(idle=False)`` for the preface; not reported). ``HttpConnection`` starts it again.
3. The idle timer keeps running after the client has disconnected, and holds the connection until it fires
   (``trio/tcp_server.py``, ``run``; not reported). ``HttpConnection`` stops it.
4. The last step of an answer is cancelled. Sending the last piece tells hypercorn that the request is over; hypercorn
   tells the app (``http.disconnect``), and quart-trio's ``asgi.py``, ``handle_messages``, cancels the task that is
   sending. What follows in that task never runs: no connection is closed for being idle or because it was asked to
   close (not reported). ``WholeResponses`` shields the last step.
5. Sending is shielded from cancellation and has no deadline (``trio/tcp_server.py``, ``protocol_send``; not reported):
   a client that does not read blocks the connection and the service's shutdown. ``SendTimeoutStream`` has a deadline
   for each chunk, below TLS, and ``connection_table.Connection.close`` closes the socket instead of cancelling.
6. There is no ASGI TLS extension (issue 62): the app does not learn the client's certificate.
   ``peer_certificate.RecordingSSLObject`` carries it in a context variable.
7. h11 0.16 accepts a request with both Content-Length and Transfer-Encoding (h11 issue 90). RFC 9112, 6.1, wants the
   connection closed after it, since a proxy in between may have read another length. ``has_ambiguous_length`` finds it.
8. A client that sends its next request early and then goes away holds its connection for ever. ``protocol/h11.py``,
   ``_handle_events``, stops reading until the response is sent; if that fails, nothing wakes the reader (not reported).
   ``HttpConnection`` ends it.
9. A client of HTTP/2 that opens no flow control window does not hold back the app (``protocol/h2.py``,
   ``StreamBuffer.pop`` takes nothing out and still wakes the writer; not reported): an endless answer is kept in memory
   without a limit. ``_Buffers`` holds it back, and ``send_in_time`` then closes the connection.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h2 import BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

from provisioner.contracts.cancel_shield import shielded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from hypercorn.events import Event
    from hypercorn.protocol.http_stream import HTTPStream
    from hypercorn.protocol.ws_stream import WSStream
    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendEvent, Scope

# Seconds for the last step of a response; an HTTP/2 client may delay it with flow control.
_LAST_STEP = 30.0
# Seconds for a piece of an answer without an end.
PIECE_TIMEOUT = 30.0
# Bytes read at once.
_CHUNK = 64 * 1024


class HttpConnection(TCPServer):
    """Hypercorn's connection, with an idle timer that runs if and only if the connection is idle (1, 2, 3).

    It ends when its peer has gone (8).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading = trio.CancelScope()

    async def protocol_send(self, event: Event) -> None:
        await super().protocol_send(event)
        protocol = self.protocol.protocol
        # Sending failed: there is no response any more that would wake the reader.
        if isinstance(event, RawData) and isinstance(protocol, H11Protocol) and protocol.stream is None:
            self._reading.cancel(reason="the peer has gone")

    async def _read_data(self) -> None:
        with self._reading:
            await self._read_until_closed()
        await self.protocol.handle(Closed())
        await self.idle_task.stop()

    async def _read_until_closed(self) -> None:
        self._accept_late_data()
        data = b"-"
        while data:
            try:
                data = bytes(await self.stream.receive_some(_CHUNK))
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return
            await self.protocol.handle(RawData(data))
            self._accept_late_data()
            await self._restart_idle_timer()

    def _accept_late_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H2Protocol) and not isinstance(protocol.streams, _Streams):
            protocol.streams = _Streams(protocol.streams)
            protocol.stream_buffers = _Buffers(protocol.stream_buffers)

    async def _restart_idle_timer(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H2Protocol) and not protocol.streams and self.idle_task._handle is None:  # noqa: SLF001
            await self.idle_task.restart(self._task_group, self._idle_timeout)


class _Streams(dict[int, "HTTPStream | WSStream"]):
    """The streams of an HTTP/2 connection; data for one that has been answered is dropped (1).

    It counts against the connection's flow control, and does not keep an idle connection open.
    """

    def __missing__(self, _stream_id: int) -> HTTPStream | WSStream:
        return _ANSWERED


class _AnsweredStream:
    async def handle(self, event: object) -> None:
        """Ignore the event."""


_ANSWERED = cast("HTTPStream", _AnsweredStream())


class _Buffer(StreamBuffer):
    """The unsent part of an answer; lets the app go on only when there is room (9)."""

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _Buffers(dict[int, StreamBuffer]):
    """The unsent parts of the answers on an HTTP/2 connection, also of those that have begun already (9)."""

    def __init__(self, begun: dict[int, StreamBuffer]) -> None:
        super().__init__()
        for stream_id, buffer in begun.items():
            self[stream_id] = buffer

    def __setitem__(self, stream_id: int, buffer: StreamBuffer) -> None:
        buffer.__class__ = _Buffer
        super().__setitem__(stream_id, buffer)


class WholeResponses:
    """An app whose last step of each answer runs to its end (4): it readies or closes the connection."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: Callable[[ASGISendEvent], Awaitable[None]],
        sync_spawn: Callable[..., Any],  # noqa: ARG002 - hypercorn's names
        call_soon: Callable[..., Any],  # noqa: ARG002
    ) -> None:
        async def send_whole(message: ASGISendEvent) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            with shielded("finish an answer", _LAST_STEP) if last else nullcontext():
                await send(message)

        await self._app(scope, receive, send_whole)


def send_in_time(
    send: Callable[[ASGISendEvent], Awaitable[None]], close: Callable[[], None]
) -> Callable[[ASGISendEvent], Awaitable[None]]:
    """Return ``send`` with a deadline for each piece of an endless answer (9), after which it calls ``close``."""
    endless = False

    async def send_piece(message: ASGISendEvent) -> None:
        nonlocal endless
        if message["type"] == "http.response.start":
            endless = (b"content-type", b"text/event-stream") in message["headers"]
        if not endless:
            await send(message)
            return
        with trio.move_on_after(PIECE_TIMEOUT) as scope:
            await send(message)
        if scope.cancelled_caught:
            close()

    return send_piece


def has_ambiguous_length(http_version: str, headers: Collection[str]) -> bool:
    """Return whether two readers may see different ends of the request (7). ``headers``: names, in lower case.

    HTTP/1.0 has no Transfer-Encoding; HTTP/2 has frames, and h2 refuses the header.
    """
    if http_version == "2" or "transfer-encoding" not in headers:
        return False
    return http_version == "1.0" or "content-length" in headers
