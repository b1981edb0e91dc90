"""HTTP transfers for image sources: requests and the lifetime of a response.

``redirects`` decides where a request may go on, ``response`` interprets a response, ``stream`` reads its body.
Authentication is up to the source, which passes a ``Prepare`` that signs requests.

Until the headers are complete, only tasks are involved: a cancel or a deadline closes the connection at once, and no
thread waits for a silent server. The body is then read from the socket directly: measured on loopback, iterating over
httpx reaches 0.4 of the speed of ``curl -o``, ``HttpStream.save`` (one worker thread on the socket) 1.0 and more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import trio

from provisioner.contracts.cancel_shield import shielded
from provisioner.contracts.errors import (
    ProvisionerError,
    RemoteChangedError,
    RemoteUnavailableError,
)
from provisioner.contracts.http.keep_alive import IdleTimer, Trace, finish
from provisioner.contracts.http.options import HttpOptions, make_transport
from provisioner.contracts.http.redirects import follow, parsed, redirect_of
from provisioner.contracts.http.response import (
    check_encoding,
    digest_of,
    error_for,
    retry_after,
    span_of,
    strong_version_of,
    version_of,
    whole_size,
)
from provisioner.contracts.http.stream import HttpStream, raw_pieces, translated
from provisioner.contracts.rate_limit import RateLimiter
from provisioner.contracts.types import RemoteImage
from provisioner.contracts.urls import ImageUrl, shown

if TYPE_CHECKING:
    from provisioner.contracts.http.pools import PoolTransport
    from provisioner.contracts.source import ImageStream

__all__ = ["Explain", "HttpOptions", "HttpTransport", "Prepare"]

Prepare = Callable[[str, ImageUrl, Mapping[str, str]], Mapping[str, str]]
"""(method, url, headers) -> the headers to send: adds authentication for this url only. Runs in a thread."""

Explain = Callable[[int, Mapping[str, str], bytes, str], ProvisionerError | None]
"""(status, headers, body, name) -> the error that an error response describes; None uses the status alone."""

_DEFAULT_HEADERS = {"Accept": "*/*", "User-Agent": "libvirt-volume-provisioner"}
# Closing does not wait for the peer; the timeout only guards against bugs.
_CLOSE_TIMEOUT = 5.0
# Bytes read of an error response's body: the XML of an object store is under one KiB.
MAX_REFUSAL = 16 * 1024
# 403: the url is signed for GET only. 400: the server does not support HEAD for generated content.
_HEAD_REFUSED = {400, 403, 405, 501}


class HttpTransport:
    """Fetches images over HTTP(S). ``allows`` is called for every url, including the targets of redirects.

    If a url's host is a literal address, ``allows`` alone decides. Host names are also checked by the addresses they
    resolve to (``HttpOptions.allow_addresses``).
    """

    def __init__(
        self,
        options: HttpOptions,
        allows: Callable[[ImageUrl], bool],
        prepare: Prepare | None = None,
        explain: Explain | None = None,
    ) -> None:
        self._options = options
        self._allows = allows
        self._prepare = prepare
        self._explain = explain
        self._transport: PoolTransport | None = None
        self._idle = IdleTimer(self._close_idle)
        self._making = trio.Lock()
        # Further requests wait here without a timeout; the pool itself would time out.
        self._connections = trio.Semaphore(options.connections)
        self._body_threads = trio.CapacityLimiter(options.connections)
        # For look-ups and secrets. A cancel may abandon their threads, so they must not take those of the bodies.
        self._lookup_threads = trio.CapacityLimiter(options.connections)
        self._rate_limiter = RateLimiter(options.rate_limit)

    async def stat(self, url: ImageUrl | str) -> RemoteImage:
        """Return size and version from a HEAD request, or from a request for one byte if the server rejects HEAD.

        With ``stat_with_get``, HEAD is not sent at all: some servers answer it with another length, or with an error.
        """
        url = parsed(url)
        if not self._options.stat_with_get:
            try:
                return await self._ask("HEAD", url, {})
            except _HeadRefusedError:
                pass
        # For an empty image, the response is 416 with the size.
        return await self._ask("GET", url, {"Range": "bytes=0-0"}, also=(416,))

    async def _ask(
        self, method: str, url: ImageUrl, headers: Mapping[str, str], also: tuple[int, ...] = ()
    ) -> RemoteImage:
        async with self._response(method, url, headers, also) as response:
            image = self._remote_image(url, response)
            await finish(response)
            return image

    @asynccontextmanager
    async def open(
        self, url: ImageUrl | str, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        """Open a range of the image, like ``ImageSource.open``."""
        url = parsed(url)
        headers = {}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if version is not None and version.startswith('"'):
                headers["If-Range"] = version
        async with self._response("GET", url, headers) as response:
            if version is not None and version_of(response.headers) != version:
                raise RemoteChangedError(f"{shown(url)} changed on the server while it was being fetched")
            self._check_encoding(response, url)
            span = span_of(response.status_code, response.headers, start, stop, shown(url))
            stream = HttpStream(response, span, self._options, self._body_threads, self._rate_limiter, shown(url))
            stream.content_encoding = response.headers.get("content-encoding", "").strip().lower() or None
            stream.strong_version = strong_version_of(response.headers)
            yield stream

    async def aclose(self) -> None:
        """Close all connections."""
        self._idle.cancel()
        if self._transport is not None:
            await self._transport.aclose()

    async def _close_idle(self) -> None:
        if self._transport is not None:
            await self._transport.close_idle()

    def _remote_image(self, url: ImageUrl, response: httpx.Response) -> RemoteImage:
        self._check_encoding(response, url)
        status, headers = response.status_code, response.headers
        if self._options.stat_with_get:
            ranges = status != httpx.codes.OK  # the server was asked for a range
        else:
            ranges = status == httpx.codes.PARTIAL_CONTENT or headers.get("accept-ranges") == "bytes"
        return RemoteImage(url, whole_size(status, headers), version_of(headers), ranges, digest_of(headers))

    def _check_encoding(self, response: httpx.Response, url: ImageUrl) -> None:
        if not self._options.any_encoding:
            check_encoding(response.headers, url)

    @asynccontextmanager
    async def _response(
        self, method: str, url: ImageUrl, headers: Mapping[str, str], also: tuple[int, ...] = ()
    ) -> AsyncIterator[httpx.Response]:
        async with self._connections:
            try:
                response = await self._request(method, url, headers, also)
                try:
                    yield response
                finally:
                    await _close(response)
            finally:
                self._idle.touch()
                await self._close_abandoned()

    async def _close_abandoned(self) -> None:
        if self._transport is not None and self._is_last():
            with shielded("close abandoned connections", _CLOSE_TIMEOUT):
                await self._transport.close_abandoned(self._is_last)

    def _is_last(self) -> bool:
        return self._connections.value == self._options.connections - 1

    async def _request(
        self, method: str, url: ImageUrl, headers: Mapping[str, str], also: tuple[int, ...]
    ) -> httpx.Response:
        """Send a request, follow redirects, and return the successful response."""
        headers = {"Accept-Encoding": "identity", **headers}
        return await follow(url, self._allows, lambda target: self._exchange(method, target, headers, url.origin, also))

    async def _exchange(
        self, method: str, url: ImageUrl, headers: Mapping[str, str], origin: str, also: tuple[int, ...]
    ) -> httpx.Response | str:
        """Return the successful response to one request, or the url it redirects to."""
        limit = self._options.connect_timeout + self._options.stall_timeout
        with trio.move_on_after(limit):
            response = await self._send(method, url, headers, origin)
            try:
                if (target := redirect_of(response, url)) is not None:
                    await finish(response)
                    await _close(response)
                    return target
                return response if response.status_code in also else await self._checked(response, method, url)
            except BaseException:
                await _close(response)
                raise
        raise RemoteUnavailableError(f"{shown(url)} stalled: the response was not complete after {limit:g} s")

    async def _send(self, method: str, url: ImageUrl, headers: Mapping[str, str], origin: str) -> httpx.Response:
        transport = await self._get_transport()
        # Like curl, do not send one host's credentials to another after a redirect.
        if self._prepare is not None and (self._options.prepare_redirects or url.origin == origin):
            headers = await trio.to_thread.run_sync(
                self._prepare, method, url, headers, limiter=self._lookup_threads, abandon_on_cancel=True
            )
        stall, connect = self._options.stall_timeout, self._options.connect_timeout
        timeouts = {"connect": connect, "read": stall, "write": stall}
        headers = {**_DEFAULT_HEADERS, **headers}
        with translated(shown(url)):
            while True:
                extensions = {"timeout": timeouts, "trace": (trace := Trace())}
                request = httpx.Request(method, url.text, headers=headers, extensions=extensions)
                try:
                    return await transport.handle_async_request(request)
                except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    if trace.is_new:
                        raise
                    # The server closed an idle connection just then. That one is gone now, so this ends.

    async def _get_transport(self) -> PoolTransport:
        async with self._making:
            if self._transport is None:  # loading an SSL context takes 20 ms: do it at the first request only
                self._transport = await trio.to_thread.run_sync(make_transport, self._options, self._lookup_threads)
            return self._transport

    async def _checked(self, response: httpx.Response, method: str, url: ImageUrl) -> httpx.Response:
        """Return a successful response; else raise the error that its status or body describes."""
        status, name = response.status_code, shown(url)
        error = error_for(status, name, response.headers)
        if error is None:
            return response
        # A response to HEAD has no body to explain the error: retry with GET for one byte.
        if method == "HEAD" and (status in _HEAD_REFUSED or (self._explain is not None and status < 500)):
            await finish(response)
            raise _HeadRefusedError
        if self._explain is None:
            await finish(response)
        else:
            with translated(name):
                beginning = await _beginning(response)
            explained = self._explain(status, response.headers, beginning, name)
            if isinstance(explained, RemoteUnavailableError):
                explained.retry_after = retry_after(response.headers)
            error = explained or error
        raise error


class _HeadRefusedError(Exception):
    """The server rejected a HEAD request, or its response needs an explanation."""


async def _close(response: httpx.Response) -> None:
    """Close the response. With unread bytes this drops the connection without waiting."""
    with shielded("close a connection", _CLOSE_TIMEOUT):
        await response.aclose()


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async with raw_pieces(response) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) >= MAX_REFUSAL:
                break
    return body[:MAX_REFUSAL]
