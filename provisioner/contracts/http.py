"""HTTP transfers for image sources: httpx for everything but the last step, which reads the socket itself.

Owns requests, redirects and the life of a response. What an answer means is ``http_answer``'s, the body
``http_stream``'s. Knows no authentication: a source hands in a ``Prepare`` that signs a request.

Measured on loopback against ``curl -o``: iterating httpx in the loop 0.4 of its speed, the way of ``save`` below
(one worker thread, the socket read directly) 1.0 and more.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urldefrag, urljoin, urlsplit

import httpx
import trio

from provisioner.contracts.errors import ProvisionerError, RemoteChangedError, SourceError, UrlNotAllowedError
from provisioner.contracts.http_answer import REDIRECTS, check_encoding, fault, span_of, version_of, whole_size
from provisioner.contracts.http_client import HttpOptions, make_client
from provisioner.contracts.http_pace import Pace
from provisioner.contracts.http_stream import HttpStream, call_httpx
from provisioner.contracts.types import RemoteImage
from provisioner.contracts.urls import shown

if TYPE_CHECKING:
    from provisioner.contracts.source import ImageStream

__all__ = ["Explain", "HttpOptions", "HttpTransport", "Prepare"]

Prepare = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]
"""(method, url, headers) -> the headers to send: adds authentication, for this very url only. Runs in a thread."""

Explain = Callable[[int, Mapping[str, str], bytes, str], ProvisionerError | None]
"""(status, headers, body, name) -> what a refusal means, read from its body; None leaves it to the status."""

MAX_REDIRECTS = 5
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
        allows: Callable[[str], bool],
        prepare: Prepare | None = None,
        explain: Explain | None = None,
    ) -> None:
        self._options = options
        self._allows = allows
        self._prepare = prepare or (lambda _method, _url, headers: headers)
        self._explain = explain
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._threads = trio.CapacityLimiter(options.connections)
        self._pace = Pace(options.rate_limit)

    async def stat(self, url: str) -> RemoteImage:
        """Size and version by HEAD, or by a request for one byte where the server has no HEAD."""
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
        self, url: str, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        """As ``ImageSource.open``."""
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
            options = self._options
            yield HttpStream(response, span, options.stall_timeout, self._threads, self._pace, shown(url))

    async def aclose(self) -> None:
        """Close idle connections."""
        with self._lock:
            if self._client is not None:
                self._client.close()

    def _remote_image(self, url: str, response: httpx.Response) -> RemoteImage:
        self._check_encoding(response, url)
        status, headers = response.status_code, response.headers
        ranges = status == httpx.codes.PARTIAL_CONTENT or headers.get("accept-ranges") == "bytes"
        return RemoteImage(url, whole_size(status, headers), version_of(headers), ranges)

    def _check_encoding(self, response: httpx.Response, url: str) -> None:
        if not self._options.any_encoding:
            check_encoding(response.headers, url)

    @asynccontextmanager
    async def _response(
        self, method: str, url: str, headers: Mapping[str, str], also: tuple[int, ...] = ()
    ) -> AsyncIterator[httpx.Response]:
        # Nothing is changed anywhere by waiting for a response, so a cancel may leave the thread to end by itself.
        exchange = _Exchange()
        try:
            yield await call_httpx(
                lambda: exchange.keep(self._request(exchange, method, url, headers, also)),
                self._threads,
                shown(url),
                abandon=True,
            )
        finally:
            exchange.close()

    def _request(
        self, exchange: _Exchange, method: str, url: str, headers: Mapping[str, str], also: tuple[int, ...]
    ) -> httpx.Response:
        """Send, follow redirects, and return an answer that is a good one. Blocking."""
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            if exchange.closed:
                raise SourceError("nobody waits for the answer any more")
            if not self._allows(target):
                raise UrlNotAllowedError(
                    f"{shown(target)} belongs to no configured source"
                    + ("" if target == url else f" ({shown(url)} redirects there)")
                )
            response = self._send(method, target, {"Accept-Encoding": "identity", **headers}, _origin(url))
            place = response.headers.get("location")
            if response.status_code not in REDIRECTS or not place:
                return response if response.status_code in also else self._good(response, method, target)
            response.close()
            try:
                target = urldefrag(urljoin(target, place)).url
            except ValueError:  # its text shows the place, and the place may hold a signature
                raise SourceError(f"{shown(target)} redirects to what is no url") from None
        raise SourceError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _send(self, method: str, url: str, headers: Mapping[str, str], origin: tuple[str, str]) -> httpx.Response:
        # As with curl: what proves who we are to one host is not shown to the next.
        if self._options.prepare_redirects or _origin(url) == origin:
            headers = self._prepare(method, url, headers)
        client = self._http()
        return client.send(client.build_request(method, url, headers=dict(headers)), stream=True)

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._client is None:  # an SSL context takes 20 ms to load; nobody pays who fetches nothing
                self._client = make_client(self._options)
            return self._client

    def _good(self, response: httpx.Response, method: str, url: str) -> httpx.Response:
        """The response where it is a good one; else raises what its status, or its body, means."""
        status, where = response.status_code, shown(url)
        error = fault(status, where)
        if error is None:
            return response
        try:
            # HEAD has no body to explain itself with: ask once more, for one byte.
            if method == "HEAD" and (status in _HEAD_REFUSED or (self._explain is not None and status < 500)):
                raise _HeadRefusedError
            if self._explain is not None:
                error = self._explain(status, response.headers, _beginning(response), where) or error
            raise error
        finally:
            response.close()


class _HeadRefusedError(Exception):
    """The server has no HEAD, or said no to it without a reason."""


class _Exchange:
    """A request that may be abandoned: its response is closed by whoever of the two threads comes last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._response: httpx.Response | None = None
        self.closed = False

    def keep(self, response: httpx.Response) -> httpx.Response:
        with self._lock:
            self._response = response
            if self.closed:
                response.close()
        return response

    def close(self) -> None:
        """Closing with unread bytes drops the connection; it does not wait for the peer."""
        with self._lock:
            self.closed = True
            if self._response is not None:
                self._response.close()


def _beginning(response: httpx.Response) -> bytes:
    body = b""
    for chunk in response.iter_raw(MAX_REFUSAL):
        body += chunk
        if len(body) >= MAX_REFUSAL:
            break
    return body[:MAX_REFUSAL]


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()
