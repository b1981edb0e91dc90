"""Accepts connections and hands each to hypercorn; a fault of one connection ends that connection and no other.

Hypercorn's own accept loop runs every connection in one nursery and catches nothing: with HTTP/2, data that comes for
a stream that was answered already is a KeyError there (0.18), and any client could end the whole service with it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from provisioner.contracts.tasks import first_cause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quart_trio import QuartTrio

    from provisioner.api.listening import Listening

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=trio.abc.AsyncResource)


@asynccontextmanager
async def serving(app: QuartTrio, door: Listening) -> AsyncIterator[list[str]]:
    """Answer requests while the block runs; yields the urls. Answers under way at its end get a short grace."""
    context = WorkerContext(None)
    room = trio.Semaphore(door.max_connections)
    wrapped = ASGIWrapper(app)

    async def attend(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await TCPServer(wrapped, door, context, LifespanState(ConnectionState({})), stream)
        except* Exception as group:  # noqa: BLE001 - the boundary: one connection must not reach another
            log.warning("a connection broke", reason=repr(first_cause(group)))
        finally:
            room.release()
            await trio.aclose_forcefully(stream)

    urls, listeners = door.listen()
    limited = [_Limited(listener, room) for listener in listeners]
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(_accept, attend, limited, connections)
            yield urls
            accepting.cancel_scope.cancel(reason="the service stops")
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + door.graceful_timeout


async def _accept(attend: object, listeners: list[_Limited[trio.abc.Stream]], connections: trio.Nursery) -> None:
    await trio.serve_listeners(attend, listeners, handler_nursery=connections)  # type: ignore[arg-type]


class _Limited(trio.abc.Listener[T], Generic[T]):
    """Takes the next connection only when there is room for it; until then it waits in the kernel's queue."""

    def __init__(self, listener: trio.abc.Listener[T], room: trio.Semaphore) -> None:
        self._listener = listener
        self._room = room

    async def accept(self) -> T:
        await self._room.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._room.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()
