"""Sends small requests, such as webhooks, to the addresses that an image source may connect to, with the same TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import trio

from provisioner.contracts.cancel_shield import shielded
from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.http.options import HttpOptions, make_transport
from provisioner.contracts.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

# Closing does not wait for the peer; the timeout only guards against bugs.
_CLOSE_TIMEOUT = 5.0


class HttpSender:
    """Sends requests with a body and returns the status. Follows no redirects and keeps nothing of the answer."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._transport: httpx.AsyncBaseTransport | None = None
        self._threads = trio.CapacityLimiter(2)

    async def post(self, url: str, headers: Mapping[str, str], content: bytes, limit: float) -> int:
        """Send POST; return the status. ``limit``: seconds for everything.

        Raises UrlNotAllowedError if the host has no permitted address, RemoteUnavailableError without an answer in
        time, SourceError if the certificates cannot be used.
        """
        if self._transport is None:
            self._transport = await trio.to_thread.run_sync(make_transport, self._options, self._threads)
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), limit)
        request = httpx.Request("POST", url, headers=headers, content=content, extensions={"timeout": timeouts})
        try:
            with trio.fail_after(limit):
                response = await self._transport.handle_async_request(request)
                try:
                    return response.status_code
                finally:
                    with shielded("close a connection", _CLOSE_TIMEOUT):
                        await response.aclose()
        except trio.TooSlowError as error:
            raise RemoteUnavailableError(f"{request.url.host} did not answer within {limit:g} s") from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = redact(str(error)) or type(error).__name__
            raise RemoteUnavailableError(f"{request.url.host} cannot be reached: {reason}") from error

    async def aclose(self) -> None:
        """Close idle connections."""
        if self._transport is not None:
            await self._transport.aclose()
