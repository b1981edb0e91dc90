"""Keep connections usable after a response, and close them when no request follows.

A job asks its server several short questions. On a new connection each of them costs another round trip, with TLS two.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
import structlog
import trio

from provisioner.contracts.http.stream import raw_pieces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

# Seconds that an idle connection is kept. Shorter than firewalls and load balancers forget connections (AWS and Azure
# after some minutes), long enough for the next job of a series.
KEEP_IDLE = 30.0
# Bytes to read for the sake of the connection: error pages of web servers have some hundred.
MAX_REST = 16 * 1024
# Seconds to wait for them. They usually arrive with the headers; a new connection costs less than a long wait.
MAX_WAIT = 0.2


async def finish(response: httpx.Response) -> None:
    """Read what is left of a short response, so that its connection can be used again; give up on others."""
    length = response.headers.get("content-length", "0")
    if response.request.method != "HEAD" and not (length.isdigit() and int(length[:20]) <= MAX_REST):
        return
    left = MAX_REST
    with trio.move_on_after(MAX_WAIT), suppress(httpx.HTTPError, httpx.StreamError):
        async with raw_pieces(response) as pieces:
            async for piece in pieces:
                left -= len(piece)
                if left < 0:
                    return


class Trace:
    """A trace of httpcore for one request: whether it opened a connection."""

    def __init__(self) -> None:
        self.is_new = False

    async def __call__(self, event: str, _details: Any) -> None:
        self.is_new = self.is_new or event == "connection.connect_tcp.started"


class IdleTimer:
    """Calls ``close`` KEEP_IDLE seconds after the last ``touch``. Sleeps only after requests."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self._close = close
        self._due = 0.0
        self._scope: trio.CancelScope | None = None

    def touch(self) -> None:
        """Start to wait again."""
        self._due = trio.current_time() + KEEP_IDLE
        if self._scope is None:
            self._scope = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run, self._scope, name="close idle connections")

    def cancel(self) -> None:
        """Do not call ``close`` any more."""
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self, scope: trio.CancelScope) -> None:
        try:
            with scope:
                while (left := self._due - trio.current_time()) > 0:  # noqa: ASYNC110 - the time moves meanwhile
                    await trio.sleep(left)
        finally:
            self._scope = None
        if scope.cancelled_caught:
            return
        try:
            await self._close()
        except Exception as error:  # an error in a system task would end the daemon
            log.error("idle connections were not closed", exc_info=error)
