# ruff: noqa: ASYNC109 - httpcore's interface has a timeout for each call
"""Sockets for httpcore: connect, TLS, read and write as trio tasks, which a cancel or a deadline ends at once.

After the headers, a worker thread may take over the socket (``direct_socket``) and read the body from it. From then on
the stream may only be closed.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpcore
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

T = TypeVar("T")


async def connect(
    address: str, port: int, timeout: float | None, options: Iterable[httpcore.SOCKET_OPTION] = ()
) -> SocketStream:
    """Connect to an IP address within ``timeout`` seconds. Raises httpcore's ConnectError and ConnectTimeout."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            sock.setsockopt(*option)  # type: ignore[call-overload,unused-ignore]
        with _translated(httpcore.ConnectTimeout, httpcore.ConnectError), trio.fail_after(_seconds(timeout)):
            await _connected(sock, address, port)
    except BaseException:
        sock.close()
        raise
    return SocketStream(sock)


async def _connected(sock: socket.socket, address: str, port: int) -> None:
    await trio.lowlevel.checkpoint()
    # The last field of the socket address is the zone of a link-local address.
    sockaddr = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]
    status = sock.connect_ex(sockaddr)
    if status == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if status:
        raise OSError(status, os.strerror(status))


class SocketStream(httpcore.AsyncNetworkStream):
    """A connected, non-blocking socket with or without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(httpcore.ReadTimeout, httpcore.ReadError), trio.fail_after(_seconds(timeout)):
            return await self._when_ready(lambda: self._sock.recv(max_bytes), trio.lowlevel.wait_readable)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(httpcore.WriteTimeout, httpcore.WriteError), trio.fail_after(_seconds(timeout)):
            while buffer:
                sent = await self._when_ready(lambda data=buffer: self._sock.send(data), trio.lowlevel.wait_writable)  # type: ignore[misc]
                buffer = buffer[sent:]

    async def aclose(self) -> None:
        self._close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _translated(httpcore.ConnectTimeout, httpcore.ConnectError), trio.fail_after(_seconds(timeout)):
                if isinstance(self._sock, ssl.SSLSocket):
                    return await _tls_in_tls(self, ssl_context, server_hostname)
                self._sock = tls = ssl_context.wrap_socket(
                    self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
                )
                await self._when_ready(tls.do_handshake, trio.lowlevel.wait_readable)
                return SocketStream(tls)
        except BaseException:
            self._close()
            raise

    def get_extra_info(self, info: str) -> Any:
        if info in {"socket", "direct_socket"}:
            return self._sock
        if info == "ssl_object":
            return self._sock if isinstance(self._sock, ssl.SSLSocket) else None
        if info == "is_readable":
            return _is_readable(self._sock)
        if info == "server_addr":
            return self._sock.getpeername()
        return None

    def _close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    async def _when_ready(self, work: Callable[[], T], wait: Callable[[socket.socket], Awaitable[None]]) -> T:
        """Run ``work`` until the socket is ready for it; TLS may need to read before it can write, and vice versa."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return work()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self._sock)
            except BlockingIOError:
                await wait(self._sock)


class _Inner(trio.abc.Stream):
    """Adapts a ``SocketStream`` to the transport interface of trio's TLS."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.read(max_bytes or 65536)

    async def aclose(self) -> None:
        await self._stream.aclose()


class _TlsInTls(httpcore.AsyncNetworkStream):
    """TLS to a server within TLS to a proxy. A worker thread cannot take it over."""

    def __init__(self, outer: SocketStream, tls: trio.SSLStream[_Inner]) -> None:
        self._outer = outer
        self._tls = tls

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(httpcore.ReadTimeout, httpcore.ReadError), trio.fail_after(_seconds(timeout)):
            return bytes(await self._tls.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(httpcore.WriteTimeout, httpcore.WriteError), trio.fail_after(_seconds(timeout)):
            await self._tls.send_all(buffer)

    async def aclose(self) -> None:
        await self._outer.aclose()

    def get_extra_info(self, info: str) -> Any:
        if info == "direct_socket":
            return None
        return self._tls if info == "ssl_object" else self._outer.get_extra_info(info)


async def _tls_in_tls(outer: SocketStream, context: ssl.SSLContext, name: str | None) -> _TlsInTls:
    tls = trio.SSLStream(_Inner(outer), context, server_hostname=name, https_compatible=True)
    await tls.do_handshake()
    return _TlsInTls(outer, tls)


def _seconds(timeout: float | None) -> float:
    return float("inf") if timeout is None else timeout


@contextmanager
def _translated(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    """Raise the errors that httpcore expects of a stream."""
    try:
        yield
    except trio.TooSlowError as error:
        raise late(str(error)) from error
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise broken(str(error)) from error


def _is_readable(sock: socket.socket) -> bool:
    """Return whether an idle connection is readable, which means that the peer closed it."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
