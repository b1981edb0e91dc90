"""HTTP transfers for image sources: httpx for everything but the last step, which reads the socket itself.

Owns requests, redirects and the life of a response. What an answer means is ``response``'s, the body
``stream``'s. Knows no authentication: a source hands in a ``Prepare`` that signs a request.

Until the headers are there, all is done by tasks: a cancel or the deadline closes the connection at once, and no
thread waits for a server that says nothing. Measured on loopback against ``curl -o``: iterating httpx in the loop 0.4
of its speed, the way of ``save`` below (one worker thread, the socket read directly) 1.0 and more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urldefrag, urljoin

import httpx
import trio

from provisioner.contracts.errors import (
    InvalidRequestError,
    ProvisionerError,
    RemoteChangedError,
    RemoteUnavailableError,
    SourceError,
    UrlNotAllowedError,
)
from provisioner.contracts.http.client import HttpOptions, make_transport
from provisioner.contracts.http.response import REDIRECTS, check_encoding, fault, span_of, version_of, whole_size
from provisioner.contracts.http.stream import HttpStream, raw_pieces, translated
from provisioner.contracts.rate_limit import RateLimiter
from provisioner.contracts.shield import shielded
from provisioner.contracts.types import RemoteImage
from provisioner.contracts.urls import ImageUrl, shown

if TYPE_CHECKING:
    from provisioner.contracts.source import ImageStream

__all__ = ["Explain", "HttpOptions", "HttpTransport", "Prepare"]

Prepare = Callable[[str, ImageUrl, Mapping[str, str]], Mapping[str, str]]
"""(method, url, headers) -> the headers to send: adds authentication, for this very url only. Runs in a thread."""

Explain = Callable[[int, Mapping[str, str], bytes, str], ProvisionerError | None]
"""(status, headers, body, name) -> what a refusal means, read from its body; None leaves it to the status."""

MAX_REDIRECTS = 5
_OURS = {"Accept": "*/*", "User-Agent": "libvirt-volume-provisioner"}
# Nothing is waited for; this bounds a fault.
_CLOSE_TIMEOUT = 5.0
# What is read of a refusal's body: the XML of an object store is under one KiB.
MAX_REFUSAL = 16 * 1024
# 403: a url signed for GET only. 400: servers that know no HEAD for what they make up on the way.
_HEAD_REFUSED = {400, 403, 405, 501}


class HttpTransport:
    """Fetches images over HTTP(S). ``allows`` is asked for every url, those that redirects lead to included.

    It is also what vouches for a url whose host is an address: names are judged by what they lead to
    (``HttpOptions.allow_addresses``), an address in an allowed url is taken at its word.
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
        self._transport: httpx.AsyncBaseTransport | None = None
        self._making = trio.Lock()
        # One more waits here, without a limit; the pool itself would give up.
        self._connections = trio.Semaphore(options.connections)
        self._bodies = trio.CapacityLimiter(options.connections)
        # Look-ups and secrets, whose threads a cancel may leave behind: no body waits for those.
        self._asides = trio.CapacityLimiter(options.connections)
        self._rate_limiter = RateLimiter(options.rate_limit)

    async def stat(self, url: ImageUrl | str) -> RemoteImage:
        """Size and version by HEAD, or by a request for one byte where the server has no HEAD."""
        url = _parsed(url)
        try:
            async with self._response("HEAD", url, {}) as response:
                return self._remote_image(url, response)
        except _HeadRefusedError:
            pass
        # 416 with the size is how an empty image answers.
        async with self._response("GET", url, {"Range": "bytes=0-0"}, also=(416,)) as response:
            return self._remote_image(url, response)

    @asynccontextmanager
    async def open(
        self, url: ImageUrl | str, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        """As ``ImageSource.open``."""
        url = _parsed(url)
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
            yield HttpStream(response, span, self._options, self._bodies, self._rate_limiter, shown(url))

    async def aclose(self) -> None:
        """Close idle connections."""
        if self._transport is not None:
            await self._transport.aclose()

    def _remote_image(self, url: ImageUrl, response: httpx.Response) -> RemoteImage:
        self._check_encoding(response, url)
        status, headers = response.status_code, response.headers
        ranges = status == httpx.codes.PARTIAL_CONTENT or headers.get("accept-ranges") == "bytes"
        return RemoteImage(url, whole_size(status, headers), version_of(headers), ranges)

    def _check_encoding(self, response: httpx.Response, url: ImageUrl) -> None:
        if not self._options.any_encoding:
            check_encoding(response.headers, url)

    @asynccontextmanager
    async def _response(
        self, method: str, url: ImageUrl, headers: Mapping[str, str], also: tuple[int, ...] = ()
    ) -> AsyncIterator[httpx.Response]:
        async with self._connections:
            response = await self._request(method, url, headers, also)
            try:
                yield response
            finally:
                await _close(response)

    async def _request(
        self, method: str, url: ImageUrl, headers: Mapping[str, str], also: tuple[int, ...]
    ) -> httpx.Response:
        """Send, follow redirects, and return an answer that is a good one."""
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            if not self._allows(target):
                raise UrlNotAllowedError(
                    f"{shown(target)} belongs to no configured source"
                    + ("" if target == url else f" ({shown(url)} redirects there)")
                )
            answer = await self._answer(method, target, {"Accept-Encoding": "identity", **headers}, url.origin, also)
            if isinstance(answer, httpx.Response):
                return answer
            target = _parsed(answer, f" ({shown(url)} redirects there)")
        raise SourceError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    async def _answer(
        self, method: str, url: ImageUrl, headers: Mapping[str, str], origin: str, also: tuple[int, ...]
    ) -> httpx.Response | str:
        """The good answer to one request, or where it redirects to."""
        limit = self._options.connect_timeout + self._options.stall_timeout
        with trio.move_on_after(limit):
            response = await self._send(method, url, headers, origin)
            try:
                place = response.headers.get("location")
                if response.status_code in REDIRECTS and place:
                    await _close(response)
                    return _joined(url, place)
                return response if response.status_code in also else await self._good(response, method, url)
            except BaseException:
                await _close(response)
                raise
        raise RemoteUnavailableError(f"{shown(url)} stalled: its answer was not complete {limit:g} s after the request")

    async def _send(self, method: str, url: ImageUrl, headers: Mapping[str, str], origin: str) -> httpx.Response:
        transport = await self._made_transport()
        # As with curl: what proves who we are to one host is not shown to the next.
        if self._prepare is not None and (self._options.prepare_redirects or url.origin == origin):
            headers = await trio.to_thread.run_sync(
                self._prepare, method, url, headers, limiter=self._asides, abandon_on_cancel=True
            )
        stall, connect = self._options.stall_timeout, self._options.connect_timeout
        timeouts = {"connect": connect, "read": stall, "write": stall}
        with translated(shown(url)):
            request = httpx.Request(method, url.text, headers={**_OURS, **headers}, extensions={"timeout": timeouts})
            return await transport.handle_async_request(request)

    async def _made_transport(self) -> httpx.AsyncBaseTransport:
        async with self._making:
            if self._transport is None:  # an SSL context takes 20 ms to load: only for who fetches something
                self._transport = await trio.to_thread.run_sync(make_transport, self._options, self._asides)
            return self._transport

    async def _good(self, response: httpx.Response, method: str, url: ImageUrl) -> httpx.Response:
        """The response if it is a good one; else raises what its status, or its body, means."""
        status, where = response.status_code, shown(url)
        error = fault(status, where)
        if error is None:
            return response
        # HEAD has no body to explain itself with: ask once more, for one byte.
        if method == "HEAD" and (status in _HEAD_REFUSED or (self._explain is not None and status < 500)):
            raise _HeadRefusedError
        if self._explain is not None:
            with translated(where):
                beginning = await _beginning(response)
            error = self._explain(status, response.headers, beginning, where) or error
        raise error


class _HeadRefusedError(Exception):
    """The server has no HEAD, or said no to it without a reason."""


async def _close(response: httpx.Response) -> None:
    """Close the response; with unread bytes that drops the connection and waits for nothing."""
    with shielded("close a connection", _CLOSE_TIMEOUT):
        await response.aclose()


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async with raw_pieces(response, MAX_REFUSAL) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) >= MAX_REFUSAL:
                break
    return body[:MAX_REFUSAL]


def _joined(url: ImageUrl, place: str) -> str:
    """Where a redirect from ``url`` leads. Raises SourceError."""
    try:
        return urldefrag(urljoin(url.text, place)).url
    except ValueError:  # its text shows the place, and the place may hold a signature
        raise SourceError(f"{shown(url)} redirects to what is no url") from None


def _parsed(url: ImageUrl | str, how: str = "") -> ImageUrl:
    """Return the url to go to. Raises UrlNotAllowedError if it is invalid, and so not one of the source's."""
    try:
        return ImageUrl.parse(url)
    except InvalidRequestError:  # its text may show the url, and with it a signature
        raise UrlNotAllowedError(f"the url belongs to no configured source{how}") from None
