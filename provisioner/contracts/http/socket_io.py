"""Moves a body from a socket into a file. Blocking; each function yields the number of bytes moved.

Owns how bytes are moved and what a socket's own errors mean; knows no HTTP.
"""

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

# 128 to 256 KiB measured best; from 4 MiB on page faults cost more than the calls saved.
BUFFER_SIZE = 256 * 1024
# What a user may give a pipe. At the usual 64 KiB splicing takes four times the calls and gains nothing.
PIPE_SIZE = 1024 * 1024
# A slow server's bytes go to the file at least this often, so that progress is true and a cut loses little.
FLUSH_AFTER = 0.25


def received(
    sock: socket.socket, missing: int, stall_timeout: float, floor: RateFloor, name: str
) -> Iterator[memoryview]:
    """Up to ``missing`` bytes, each piece valid until the next is asked for; ends where the peer does."""
    sock.settimeout(stall_timeout)
    buffer = memoryview(bytearray(min(BUFFER_SIZE, missing)))
    while missing and (filled := _fill(sock, buffer[:missing], floor, name)):
        missing -= filled
        yield buffer[:filled]


def _fill(sock: socket.socket, buffer: memoryview, floor: RateFloor, name: str) -> int:
    """Receive until the buffer is full, time is up or the peer is done; how many bytes came."""
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
    """Move up to ``missing`` bytes to ``offset`` of ``fd`` without a copy in this process; the size of each move.

    The kernel hands the pages on by way of a pipe: 0.7 of the processor time of receiving and writing, measured
    on loopback. Not for TLS, whose bytes on the socket are not the image's.
    """
    # Blocking, with the kernel's own time limit: a descriptor with Python's would be a non-blocking one to splice.
    sock.settimeout(None)
    seconds, rest = divmod(stall_timeout, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), max(1, int(rest * 1e6))))
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        with suppress(OSError):  # refused where the user's pipes hold too much already: slower, not worse
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
    """Empty the pipe into the file; by hand where the file's system knows no splice."""
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
    """End a connection under the thread that reads it."""
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
        reason = getattr(cause, "reason", None) or cause.strerror
        return RemoteUnavailableError(f"{name}: the TLS connection broke: {reason}")
    if isinstance(error, httpx.ProxyError):  # the rest of its text is the proxy's own
        return RemoteUnavailableError(f"{name}: the proxy refused the connection (HTTP {str(error)[:3]})")
    # After a colon stands what the server sent, in which it may repeat the request with its signature.
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).partition(":")[0]
    began = isinstance(error, OSError | httpx.ReadError | httpx.RemoteProtocolError)
    what = "the connection broke" if began else "the server cannot be reached"
    return RemoteUnavailableError(f"{name}: {what}: {words or type(error).__name__}")


def _root(error: BaseException) -> BaseException:
    """The first OSError behind an error: httpx and httpcore wrap it twice."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen or error
