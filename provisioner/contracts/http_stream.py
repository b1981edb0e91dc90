"""The body of an HTTP response on its way into a file. Owns the reading of the socket, and how a cancel ends it."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import outcome
import trio

from provisioner.contracts.errors import InvalidRequestError, RemoteUnavailableError
from provisioner.contracts.source import ImageStream, pwrite_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

T = TypeVar("T")

# 128 to 256 KiB measured best; from 4 MiB on page faults cost more than the calls saved.
BUFFER_SIZE = 256 * 1024


class HttpStream(ImageStream):
    """The body of one response. ``length`` is what is to come, None where the server does not say (chunked)."""

    def __init__(
        self,
        response: httpx.Response,
        start: int,
        length: int | None,
        stall_timeout: float,
        threads: trio.CapacityLimiter,
        name: str,
    ) -> None:
        self.start = start
        self._response = response
        self._length = length
        self._stall_timeout = stall_timeout
        self._threads = threads
        self._name = name

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._chunks()
        while (chunk := await self._severable(lambda: next(chunks, b""))) != b"":
            yield chunk

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

    def _chunks(self) -> Iterator[bytes]:
        received = 0
        for chunk in self._response.iter_raw(BUFFER_SIZE):
            received += len(chunk)
            yield chunk
        if self._length is not None and received < self._length:
            raise self._too_early(self._length - received)

    def _save(self, fd: int, report: Callable[[int], None]) -> int:
        # Without a length the chunked framing has to be parsed, and only httpx can do that.
        pieces = self._chunks() if self._length is None else self._raw(self._length)
        offset = self.start
        for piece in pieces:
            pwrite_all(fd, piece, offset)
            offset += len(piece)
            report(offset)
            trio.from_thread.check_cancelled()
        return offset

    def _raw(self, missing: int) -> Iterator[bytes | memoryview]:
        """The body from the socket itself, each piece valid until the next is asked for."""
        # The first chunk is what the parser had read along with the headers; after it, its buffer is empty.
        first = next(self._response.iter_raw(), b"")
        if first:
            missing -= len(first)
            yield first
        sock = self._socket()
        sock.settimeout(self._stall_timeout)
        buffer = memoryview(bytearray(BUFFER_SIZE))
        while missing:
            filled = _fill(sock, buffer[: min(BUFFER_SIZE, missing)])
            if not filled:
                raise self._too_early(missing)
            missing -= filled
            yield buffer[:filled]

    def _too_early(self, missing: int) -> RemoteUnavailableError:
        return RemoteUnavailableError(f"{self._name} ended {missing} bytes too early")


def _fill(sock: Any, buffer: memoryview) -> int:
    """Receive until the buffer is full or the peer is done; how many bytes came."""
    filled = 0
    while filled < len(buffer):
        received = sock.recv_into(buffer[filled:])
        if not received:
            break
        filled += received
    return filled


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        # The plain socket's own: SSLSocket's would take the TLS state from under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


async def call_httpx(work: Callable[[], T], threads: trio.CapacityLimiter, name: str, *, abandon: bool = False) -> T:
    """Run ``work`` in a worker thread and translate what httpx and sockets raise. ``name`` is for messages."""
    try:
        return await trio.to_thread.run_sync(work, limiter=threads, abandon_on_cancel=abandon)
    except httpx.InvalidURL as error:
        raise InvalidRequestError(f"{name} is not a url: {error}") from error
    except httpx.TimeoutException as error:
        raise RemoteUnavailableError(f"{name} did not answer in time") from error
    except httpx.HTTPError as error:
        raise RemoteUnavailableError(f"{name} cannot be reached: {error}") from error
    except TimeoutError as error:
        raise RemoteUnavailableError(f"{name} stalled: no byte came in time") from error
    except ssl.SSLError as error:
        raise RemoteUnavailableError(f"{name}: the TLS connection broke: {error.reason}") from error
    except OSError as error:
        if isinstance(error, ConnectionError | socket.gaierror):
            raise RemoteUnavailableError(f"{name}: the connection broke: {error.strerror}") from error
        raise
