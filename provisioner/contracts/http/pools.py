"""An httpx transport over httpcore's connection pools, built on the public API of both.

Chooses the pool of each request (direct or through a proxy) and translates httpcore's errors to httpx's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from provisioner.contracts.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping

    MakePool = Callable[[str | None], httpcore.AsyncConnectionPool]


class PoolTransport(httpx.AsyncBaseTransport):
    """Sends requests through pools that ``make`` creates for a proxy's url, or for None if connections are direct.

    ``proxy`` is used for every request; ``from_environment`` reads ``http_proxy``, ``https_proxy``, ``all_proxy`` and
    ``no_proxy``. Raises httpx's errors.
    """

    def __init__(self, make: MakePool, proxy: str | None = None, *, from_environment: bool = False) -> None:
        self._make = make
        self._proxy = proxy
        self._environment = getproxies() if from_environment else {}
        self._pools: dict[str | None, httpcore.AsyncConnectionPool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = request.url
        core_request = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx(request):
            core_response = await self._pool_for(url).handle_async_request(core_request)
        assert not isinstance(core_response.stream, bytes)
        return httpx.Response(
            core_response.status,
            headers=core_response.headers,
            stream=_Body(core_response.stream, request),  # type: ignore[arg-type]
            extensions=core_response.extensions,
            request=request,
        )

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()

    async def close_idle(self) -> None:
        """Close the connections that no request uses. The pools forget them at the next request."""
        for pool in self._pools.values():
            for connection in pool.connections:
                if connection.is_idle():
                    await connection.aclose()

    async def close_abandoned(self, is_unused: Callable[[], bool]) -> None:
        """Close the connections that belonged to cancelled requests. ``is_unused``: no request is in progress.

        httpcore 1.0.9 keeps the connection of a request that is cancelled between its connect and its first byte: it
        is never used again and never closed.
        """
        for pool in list(self._pools.values()):
            if is_unused() and not all(one.is_idle() or one.is_closed() for one in pool.connections):
                await pool.aclose()  # the pool starts again without connections

    def _pool_for(self, url: httpx.URL) -> httpcore.AsyncConnectionPool:
        proxy = self._proxy or environment_proxy(self._environment, url.scheme, url.host)
        if proxy not in self._pools:
            self._pools[proxy] = self._make(proxy)
        return self._pools[proxy]


def environment_proxy(proxies: Mapping[str, str], scheme: str, host: str) -> str | None:
    """Return the proxy's url for a request according to the environment, None for none. Raises SourceError."""
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(host):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise SourceError(f"the proxy for {scheme} in the environment is neither http nor https")
    return proxy


class _Body(httpx.AsyncByteStream):
    """The body of a response."""

    def __init__(self, stream: AsyncIterable[bytes], request: httpx.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx(self._request):
            async for piece in self._stream:
                yield piece

    async def aclose(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()


@contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    """Raise httpcore's errors as httpx's errors of the same name."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
        raise _named(error, request) from error
    except httpcore.UnsupportedProtocol as error:
        raise httpx.UnsupportedProtocol(str(error), request=request) from error


def _named(error: Exception, request: httpx.Request) -> httpx.TransportError:
    kind = getattr(httpx, type(error).__name__, httpx.TransportError)
    assert issubclass(kind, httpx.TransportError)
    return kind(str(error), request=request)
