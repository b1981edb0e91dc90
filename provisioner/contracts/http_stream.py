"""The body of an HTTP response: which bytes of it count, where they go, and how a cancel ends it.

How bytes are moved from the socket is ``http_socket``'s.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import outcome
import trio

from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.http_socket import broken, received, shut_down, spliced
from provisioner.contracts.source import ImageStream, pwrite_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from provisioner.contracts.http_answer import Span
    from provisioner.contracts.http_pace import Pace

T = TypeVar("T")


class HttpStream(ImageStream):
    """The body of one response."""

    def __init__(
        self,
        response: httpx.Response,
        span: Span,
        stall_timeout: float,
        threads: trio.CapacityLimiter,
        pace: Pace,
        name: str,
    ) -> None:
        self.start = span.start
        self._response = response
        self._span = span
        self._stall_timeout = stall_timeout
        self._threads = threads
        self._pace = pace
        self._name = name

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces, taken = self._parsed(), 0
        while (piece := await self._severable(lambda: self._next(pieces))) != b"":
            taken += len(piece)
            yield piece
        self._check_whole(taken)

    async def save(self, fd: int, report: Callable[[int], None]) -> int:
        return await self._severable(lambda: self._save(fd, report))

    async def _severable(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread; a cancel shuts the socket down under it, so that it ends at once."""
        ended = False

        async def sever_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not ended:
                    shut_down(self._socket())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sever_when_cancelled)
            result = await outcome.acapture(call_httpx, work, self._threads, self._name)
            ended = True
            nursery.cancel_scope.cancel()
        return result.unwrap()

    def _socket(self) -> Any:
        return self._response.extensions["network_stream"].get_extra_info("socket")

    def _next(self, pieces: Iterator[bytes]) -> bytes:
        piece = next(pieces, b"")
        self._pace.spend(len(piece), trio.from_thread.check_cancelled)
        return piece

    def _save(self, fd: int, report: Callable[[int], None]) -> int:
        offset = self.start
        for count in self._moved(fd):
            offset += count
            report(offset)
            trio.from_thread.check_cancelled()
            self._pace.spend(count, trio.from_thread.check_cancelled)
        self._check_whole(offset - self.start)
        return offset

    def _moved(self, fd: int) -> Iterator[int]:
        """Write the body to ``fd`` by the quickest way there is; the size of each step."""
        tls = self._response.extensions["network_stream"].get_extra_info("ssl_object")
        sock = self._socket()
        offset, missing = self.start, self._span.length
        # Chunks have to be parsed, and TLS inside a proxy's TLS is not on the socket: httpx does both.
        if self._span.framed or missing is None or (tls is not None and not isinstance(sock, ssl.SSLSocket)):
            yield from _written(self._parsed(), fd, offset)
            return
        # The iterator is kept until the end: dropping it would close the connection.
        parsed = self._parsed()
        # The first piece is what the parser had read along with the headers; after it, its buffer is empty.
        if first := next(parsed, b""):
            yield from _written(iter([first]), fd, offset)
            offset, missing = offset + len(first), missing - len(first)
        if tls is None:
            yield from spliced(sock, fd, offset, missing, self._stall_timeout, self._name)
        else:
            yield from _written(received(sock, missing, self._stall_timeout, self._name), fd, offset)

    def _parsed(self) -> Iterator[bytes]:
        """The body by way of httpx, up to the promised length."""
        missing = self._span.length
        if missing == 0:
            return
        for piece in self._response.iter_raw():
            taken = piece if missing is None else piece[:missing]
            yield taken
            if missing is not None and not (missing := missing - len(taken)):
                return

    def _check_whole(self, taken: int) -> None:
        if lacking := (self._span.length or taken) - taken + self._span.lacking:
            raise RemoteUnavailableError(f"{self._name} ended {lacking} bytes too early")


def _written(pieces: Iterator[bytes] | Iterator[memoryview], fd: int, offset: int) -> Iterator[int]:
    for piece in pieces:
        pwrite_all(fd, piece, offset)
        offset += len(piece)
        yield len(piece)


async def call_httpx(work: Callable[[], T], threads: trio.CapacityLimiter, name: str, *, abandon: bool = False) -> T:
    """Run ``work`` in a worker thread and translate what httpx raises. ``name`` is for messages."""
    try:
        return await trio.to_thread.run_sync(work, limiter=threads, abandon_on_cancel=abandon)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise broken(error, name) from error
