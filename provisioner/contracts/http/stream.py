"""The body of an HTTP response: read it as pieces or save it to a file, cancellable at any time.

``socket_io`` moves the bytes from the socket.
"""

from __future__ import annotations

import ssl
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import outcome
import trio

from provisioner.contracts.cancel_shield import shielded
from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.http.socket_io import broken, received, shut_down, spliced
from provisioner.contracts.rate_limit import RateFloor
from provisioner.contracts.source import ImageStream, pwrite_all
from provisioner.contracts.threads import as_batch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from provisioner.contracts.http.options import HttpOptions
    from provisioner.contracts.http.response import Span
    from provisioner.contracts.rate_limit import RateLimiter

T = TypeVar("T")
# Closing does not wait for the peer; the timeout only guards against bugs.
_CLOSE_TIMEOUT = 5.0
# Seconds to wait for the end of a chunked body after its last byte. Without it the connection is closed.
_END_TIMEOUT = 0.2


class HttpStream(ImageStream):
    """The body of one response. ``name`` is used in messages."""

    def __init__(
        self,
        response: httpx.Response,
        span: Span,
        options: HttpOptions,
        threads: trio.CapacityLimiter,
        rate_limiter: RateLimiter,
        name: str,
    ) -> None:
        self.start = span.start
        self._response = response
        self._span = span
        self._stall_timeout = options.stall_timeout
        self._floor = RateFloor(options.min_rate, options.stall_timeout, name)
        self._threads = threads
        self._rate_limiter = rate_limiter
        self._name = name

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        async with aclosing(self._parsed()) as pieces:
            async for piece in pieces:
                taken += len(piece)
                yield piece
                await trio.sleep(self._rate_limiter.reserve(len(piece)))
        self._check_whole(taken)

    async def save(self, fd: int, report: Callable[[int], None]) -> int:
        """Write the body to ``fd``, in a worker thread on the socket if that carries the image's plain bytes."""
        sock = self._direct_socket()
        offset = self.start
        async with aclosing(self._parsed()) as pieces:
            async for piece in pieces:
                await trio.to_thread.run_sync(_write, fd, piece, offset, report, limiter=self._threads)
                offset += len(piece)
                await trio.sleep(self._rate_limiter.reserve(len(piece)))
                # The first piece is what the parser read along with the headers; its buffer is empty afterwards.
                if sock is not None and offset < self._end():
                    offset = await self._severable(sock, lambda: self._save(sock, fd, offset, report))  # noqa: B023
                    break
        self._check_whole(offset - self.start)
        return offset

    def _end(self) -> int:
        assert self._span.length is not None
        return self.start + self._span.length

    def _direct_socket(self) -> Any:
        """Return the socket if it carries the image's bytes: neither chunked nor TLS within TLS."""
        if self._span.framed or self._span.length is None:
            return None
        return self._response.extensions["network_stream"].get_extra_info("direct_socket")

    async def _severable(self, sock: Any, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread; a cancel shuts down the socket, which ends the thread at once."""
        ended = False

        async def sever_when_cancelled() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not ended:
                    shut_down(sock)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sever_when_cancelled)
            result: outcome.Outcome[T] = await outcome.acapture(
                partial(trio.to_thread.run_sync, as_batch, work, limiter=self._threads)
            )
            ended = True
            nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()  # ignore the error of a socket that we shut down
        return result.unwrap()

    def _save(self, sock: Any, fd: int, offset: int, report: Callable[[int], None]) -> int:
        for count in self._moved(sock, fd, offset):
            offset += count
            report(offset)
            trio.from_thread.check_cancelled()
            self._rate_limiter.acquire(count, trio.from_thread.check_cancelled)
        return offset

    def _moved(self, sock: Any, fd: int, offset: int) -> Iterator[int]:
        """Write the rest of the body to ``fd`` by the fastest method. Yield the size of each step."""
        missing = self._end() - offset
        if isinstance(sock, ssl.SSLSocket):
            pieces = received(sock, missing, self._stall_timeout, self._floor, self._name)
            for piece in pieces:
                pwrite_all(fd, piece, offset)
                offset += len(piece)
                yield len(piece)
        else:
            yield from spliced(sock, fd, offset, missing, self._stall_timeout, self._floor, self._name)

    async def _parsed(self) -> AsyncGenerator[bytes]:
        """Yield the body as parsed by httpx, up to the announced length. Raises if it stalls or is too slow."""
        missing = self._span.length
        if missing == 0:
            return
        async with raw_pieces(self._response) as pieces:
            while True:
                began = trio.current_time()
                with translated(self._name), trio.fail_after(self._stall_timeout):
                    piece = await anext(pieces, b"")
                self._floor.waited(trio.current_time() - began, len(piece))
                if not piece:
                    return
                piece = piece if missing is None else piece[:missing]
                yield piece
                if missing is not None and not (missing := missing - len(piece)):
                    await pieces.end()
                    return

    def _check_whole(self, taken: int) -> None:
        if lacking := (self._span.length or taken) - taken + self._span.lacking:
            raise RemoteUnavailableError(f"{self._name} ended {lacking} bytes too early")


def _write(fd: int, piece: bytes, offset: int, report: Callable[[int], None]) -> None:
    pwrite_all(fd, piece, offset)
    report(offset + len(piece))


class RawPieces:
    """An iterator over a raw body that knows whether the body was read to its end."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.ended = False

    def __aiter__(self) -> RawPieces:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self.ended = True
            raise

    async def end(self) -> None:
        """Read the end of a body whose bytes were all received, which is usually there already."""
        with trio.move_on_after(_END_TIMEOUT), suppress(httpx.HTTPError, httpx.StreamError):
            await anext(self, b"")


@asynccontextmanager
async def raw_pieces(response: httpx.Response, size: int | None = None) -> AsyncIterator[RawPieces]:
    """Yield an iterator over the raw body in pieces of ``size``; close the connection unless it is read to its end.

    If it was not, generators of httpcore remain that cannot be closed from outside. They end when they are read after
    the connection is closed.
    """
    pieces = RawPieces(response.aiter_raw(size))
    try:
        yield pieces
    finally:
        if not pieces.ended:
            with shielded("close a connection", _CLOSE_TIMEOUT):
                await response.extensions["network_stream"].aclose()
                with suppress(httpx.HTTPError, httpx.StreamError):
                    async for _ in pieces:
                        pass


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Translate httpx's errors and an expired deadline to ours. ``name`` is used in messages."""
    try:
        yield
    except trio.TooSlowError as error:
        raise RemoteUnavailableError(f"{name} stalled: no data arrived in time") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise broken(error, name) from error
