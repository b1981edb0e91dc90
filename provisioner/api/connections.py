"""Accepts connections and hands each to hypercorn; a fault of one connection ends that connection and no other.

Hypercorn's own accept loop runs every connection in one nursery and catches nothing: with HTTP/2, data that comes for
a stream that was answered already is a KeyError there (0.18), and any client could end the whole service with it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from provisioner.api.auditing import LOCAL, group_of
from provisioner.api.peer_tls import refusal
from provisioner.contracts.tasks import first_cause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from quart_trio import QuartTrio

    from provisioner.api.auditing import Auditor
    from provisioner.api.listening import Listening

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=trio.abc.AsyncResource)


@asynccontextmanager
async def serving(app: QuartTrio, door: Listening, auditor: Auditor) -> AsyncIterator[list[str]]:
    """Answer requests while the block runs; yields the urls. Answers under way at its end get a short grace."""
    context = WorkerContext(None)
    room = trio.Semaphore(door.max_connections)
    wrapped = ASGIWrapper(app)
    shares = _Shares(door.max_connections_per_address)

    async def attend(stream: trio.SSLStream[trio.SocketStream]) -> None:
        address = _address(stream)
        refusal.set(partial(auditor.handshake_refused, address))
        try:
            with shares.one(group_of(address)) as fits:
                if not fits:
                    auditor.connection_refused()
                    return
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


class _Shares:
    """How many connections each address has; none has more than ``most``. A unix socket's are not counted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def one(self, address: str) -> Iterator[bool]:
        """Take up room for a connection; yields whether there was any."""
        if address == LOCAL or self._open[address] >= self._most:
            yield address == LOCAL
            return
        self._open[address] += 1
        try:
            yield True
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


def _address(stream: trio.abc.Stream) -> str:
    """The peer's address; for a unix socket, or a peer that is gone already, ``local``."""
    try:
        peer = getattr(stream, "transport_stream", stream).socket.getpeername()  # type: ignore[union-attr]
    except OSError:
        return LOCAL
    return str(peer[0]) if isinstance(peer, tuple) else LOCAL


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
