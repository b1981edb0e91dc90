"""The body of an HTTP response on its way into a file. Owns the reading of the socket, and how a cancel ends it."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import outcome
import trio

from provisioner.contracts.errors import InvalidRequestError, ProvisionerError, RemoteUnavailableError, SourceError
from provisioner.contracts.source import ImageStream, pwrite_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from provisioner.contracts.http_answer import Span
    from provisioner.contracts.http_pace import Pace

T = TypeVar("T")

# 128 to 256 KiB measured best; from 4 MiB on page faults cost more than the calls saved.
BUFFER_SIZE = 256 * 1024
# A slow server's bytes go to the file at least this often, so that progress is true and a cut loses little.
FLUSH_AFTER = 0.25


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
        chunks = self._checked(self._framed())
        while (chunk := await self._severable(lambda: next(chunks, b""))) != b"":
            yield bytes(chunk)

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
                    _shut_down(self._socket())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sever_when_cancelled)
            result = await outcome.acapture(call_httpx, work, self._threads, self._name)
            ended = True
            nursery.cancel_scope.cancel()
        return result.unwrap()

    def _socket(self) -> Any:
        return self._response.extensions["network_stream"].get_extra_info("socket")

    def _save(self, fd: int, report: Callable[[int], None]) -> int:
        # Chunks have to be parsed, and TLS inside a proxy's TLS is not on the socket: httpx does both.
        plain = not self._span.framed and self._socket_is_the_stream()
        offset = self.start
        for piece in self._checked(self._raw() if plain else self._framed()):
            pwrite_all(fd, piece, offset)
            offset += len(piece)
            report(offset)
            trio.from_thread.check_cancelled()
        return offset

    def _socket_is_the_stream(self) -> bool:
        tls = self._response.extensions["network_stream"].get_extra_info("ssl_object")
        return tls is None or isinstance(self._socket(), ssl.SSLSocket)

    def _checked(self, pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """The pieces up to the promised length, at the source's pace. Raises where they end before it."""
        missing = self._span.length
        for piece in pieces:
            taken = piece if missing is None else piece[:missing]
            yield taken
            self._pace.spend(len(taken), trio.from_thread.check_cancelled)
            if missing is not None and not (missing := missing - len(taken)):
                break
        if lacking := (missing or 0) + self._span.lacking:
            raise RemoteUnavailableError(f"{self._name} ended {lacking} bytes too early")

    def _framed(self) -> Iterator[bytes]:
        return self._response.iter_raw(BUFFER_SIZE) if self._span.length != 0 else iter(())

    def _raw(self) -> Iterator[bytes | memoryview]:
        """The body from the socket itself, each piece valid until the next is asked for; ends where the peer does."""
        missing = self._span.length or 0
        # The first chunk is what the parser had read along with the headers; after it, its buffer is empty.
        # The iterator is kept until the end: dropping it would close the connection.
        parsed = self._response.iter_raw()
        if missing and (first := next(parsed, b"")):
            missing -= len(first)
            yield first
        sock = self._socket()
        sock.settimeout(self._stall_timeout)
        buffer = memoryview(bytearray(min(BUFFER_SIZE, max(missing, 0))))
        while missing > 0 and (filled := self._fill(sock, buffer[:missing])):
            missing -= filled
            yield buffer[:filled]

    def _fill(self, sock: Any, buffer: memoryview) -> int:
        """Receive until the buffer is full, time is up or the peer is done; how many bytes came."""
        filled, flush_at = 0, time.monotonic() + FLUSH_AFTER
        while filled < len(buffer) and (not filled or time.monotonic() < flush_at):
            try:
                received = sock.recv_into(buffer[filled:])
            except OSError as error:
                raise broken(error, self._name) from error
            if not received:
                break
            filled += received
        return filled


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        # The plain socket's own: SSLSocket's would take the TLS state from under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def broken(error: Exception, name: str) -> ProvisionerError:
    """What an error of httpx or of a socket means, with what the system said behind it."""
    cause = _root(error)
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return InvalidRequestError(f"{name} is not a url that can be fetched")
    if isinstance(error, httpx.LocalProtocolError):  # its text would show the header, which may be a secret
        return SourceError(f"{name}: the request cannot be sent, one of its headers is not valid")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return SourceError(f"{name}: the server's certificate is not trusted: {cause.verify_message}")
    if isinstance(cause, socket.gaierror) and cause.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
        return SourceError(f"{name}: the host is not known")
    if isinstance(error, httpx.ConnectTimeout):
        return RemoteUnavailableError(f"{name}: no connection came about in time")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return RemoteUnavailableError(f"{name} stalled: no byte came in time")
    if isinstance(cause, ssl.SSLError):
        return RemoteUnavailableError(
            f"{name}: the TLS connection broke: {getattr(cause, 'reason', None) or cause.strerror}"
        )
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    what = "the connection broke" if isinstance(error, OSError | httpx.ReadError) else "the server cannot be reached"
    return RemoteUnavailableError(f"{name}: {what}: {words or type(error).__name__}")


def _root(error: BaseException) -> BaseException:
    """The first OSError behind an error: httpx and httpcore wrap it twice."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen or error


async def call_httpx(work: Callable[[], T], threads: trio.CapacityLimiter, name: str, *, abandon: bool = False) -> T:
    """Run ``work`` in a worker thread and translate what httpx raises. ``name`` is for messages."""
    try:
        return await trio.to_thread.run_sync(work, limiter=threads, abandon_on_cancel=abandon)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise broken(error, name) from error
