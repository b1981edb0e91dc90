"""Move a body from a socket to a file, and translate the errors of sockets. All functions block."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx

from provisioner.contracts.errors import InvalidRequestError, ProvisionerError, RemoteUnavailableError, SourceError
from provisioner.contracts.source import pwrite_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provisioner.contracts.rate_limit import RateFloor

# 128 to 256 KiB measured fastest; from 4 MiB on, page faults cost more than fewer calls save.
BUFFER_SIZE = 256 * 1024
# The default pipe-max-size. With pipes of the usual 64 KiB, splicing needs four times the calls and gains nothing.
PIPE_SIZE = 1024 * 1024
# Bytes of a slow server are written at least this often, so that progress is current and a break loses little.
FLUSH_AFTER = 0.25


def received(
    sock: socket.socket, missing: int, stall_timeout: float, floor: RateFloor, name: str
) -> Iterator[memoryview]:
    """Yield up to ``missing`` bytes until the peer closes. Each piece is valid until the next one is requested."""
    sock.settimeout(stall_timeout)
    buffer = memoryview(bytearray(min(BUFFER_SIZE, missing)))
    while missing and (filled := _fill(sock, buffer[:missing], floor, name)):
        missing -= filled
        yield buffer[:filled]


def _fill(sock: socket.socket, buffer: memoryview, floor: RateFloor, name: str) -> int:
    """Receive until the buffer is full, FLUSH_AFTER passes or the peer closes. Return the number of bytes."""
    filled, flush_at = 0, time.monotonic() + FLUSH_AFTER
    while filled < len(buffer) and (not filled or time.monotonic() < flush_at):
        began = time.monotonic()
        try:
            count = sock.recv_into(buffer[filled:])
        except OSError as error:
            raise broken(error, name) from error
        if not count:
            break
        floor.waited(time.monotonic() - began, count)
        filled += count
    return filled


def spliced(
    sock: socket.socket, fd: int, offset: int, missing: int, stall_timeout: float, floor: RateFloor, name: str
) -> Iterator[int]:
    """Move up to ``missing`` bytes to ``offset`` of ``fd`` within the kernel. Yield the size of each move.

    The kernel passes the pages through a pipe, which takes 0.7 of the processor time of receiving and writing, measured
    on loopback. Not for TLS, because the bytes on the socket are encrypted.
    """
    # Use a blocking socket with the kernel's timeout: Python's timeout would make it non-blocking for splice.
    sock.settimeout(None)
    seconds, rest = divmod(stall_timeout, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), max(1, int(rest * 1e6))))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        with suppress(OSError):  # fails if the user's pipes exceed their limit; splicing is only slower then
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        while missing:
            began = time.monotonic()
            try:
                count = os.splice(sock.fileno(), writer, min(missing, PIPE_SIZE))
            except OSError as error:
                raise broken(TimeoutError() if error.errno == errno.EAGAIN else error, name) from error
            if not count:
                break
            floor.waited(time.monotonic() - began, count)
            _drain(reader, fd, offset, count)
            offset, missing = offset + count, missing - count
            yield count
    finally:
        os.close(reader)
        os.close(writer)


def _drain(reader: int, fd: int, offset: int, count: int) -> None:
    """Empty the pipe into the file; read and write if the file system does not support splice."""
    while count:
        try:
            moved = os.splice(reader, fd, count, offset_dst=offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            data = os.read(reader, count)
            pwrite_all(fd, data, offset)
            moved = len(data)
        offset, count = offset + moved, count - moved


def shut_down(sock: socket.socket) -> None:
    """Shut down a connection while a thread reads from it."""
    with suppress(OSError):
        # Call the plain socket's method: SSLSocket's would discard the TLS state that the reading thread uses.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def broken(error: Exception, name: str) -> ProvisionerError:
    """Return the error of ours for an error of httpx or a socket, with the system's reason."""
    cause = _root(error)
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return InvalidRequestError(f"{name} is not a url that can be fetched")
    if isinstance(error, httpx.LocalProtocolError):  # its text contains the header, which may be a secret
        return SourceError(f"{name}: the request cannot be sent because one of its headers is invalid")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return SourceError(f"{name}: the server's certificate is not trusted: {cause.verify_message}")
    if isinstance(cause, socket.gaierror) and cause.errno in {socket.EAI_NONAME, socket.EAI_NODATA}:
        return SourceError(f"{name}: host not found")
    if isinstance(error, httpx.ConnectTimeout):
        return RemoteUnavailableError(f"{name}: connecting timed out")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return RemoteUnavailableError(f"{name} stalled: no data arrived in time")
    if isinstance(cause, ssl.SSLError):
        reason = getattr(cause, "reason", None) or cause.strerror
        return RemoteUnavailableError(f"{name}: the TLS connection broke: {reason}")
    if isinstance(error, httpx.ProxyError):  # the rest of its text comes from the proxy
        return RemoteUnavailableError(f"{name}: the proxy refused the connection (HTTP {str(error)[:3]})")
    # The text after a colon comes from the server, which may repeat the request with its signature.
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).partition(":")[0]
    connected = isinstance(error, OSError | httpx.ReadError | httpx.RemoteProtocolError)
    what = "the connection broke" if connected else "the server cannot be reached"
    return RemoteUnavailableError(f"{name}: {what}: {reason or type(error).__name__}")


def _root(error: BaseException) -> BaseException:
    """Return the OSError that an error of httpx wraps (twice), else the error itself."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen or error
