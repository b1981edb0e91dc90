"""Accepts connections and hands each to hypercorn; a fault of one connection ends that connection and no other.

Hypercorn's own accept loop runs every connection in one nursery and catches nothing: with HTTP/2, data that comes for
a stream that was answered already is a KeyError there (0.18), and any client could end the whole service with it.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from provisioner.api.auditing import LOCAL, group_of
from provisioner.api.listening import cut
from provisioner.api.peer_tls import refusal
from provisioner.contracts.tasks import first_cause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendEvent, Scope
    from quart_trio import QuartTrio

    from provisioner.api.auditing import Auditor
    from provisioner.api.listening import Listening

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=trio.abc.AsyncResource)

# Seconds for the last step of an answer; over HTTP/2 a client may hold back what is still to be sent.
_LAST_STEP = 30.0
# Bytes read at once.
_PIECE = 64 * 1024


@asynccontextmanager
async def serving(app: QuartTrio, door: Listening, auditor: Auditor) -> AsyncIterator[list[str]]:
    """Answer requests while the block runs; yields the urls. Answers under way at its end get a short grace."""
    context = WorkerContext(None)
    room = trio.Semaphore(door.max_connections)
    wrapped = _WholeAnswers(app)
    shares = _Shares(door.max_connections_per_address)

    async def attend(stream: trio.SSLStream[trio.SocketStream]) -> None:
        address = _address(stream)
        door.open_streams.add(stream)
        refusal.set(partial(auditor.handshake_refused, address))
        try:
            with shares.one(group_of(address)) as fits:
                if not fits:
                    auditor.connection_refused()
                    return
                await _Connection(wrapped, door, context, LifespanState(ConnectionState({})), stream)
        except* Exception as group:  # noqa: BLE001 - the boundary: one connection must not reach another
            log.warning("a connection broke", reason=repr(first_cause(group)))
        finally:
            room.release()
            door.open_streams.discard(stream)
            await trio.aclose_forcefully(stream)

    urls, listeners = door.listen()
    limited = [_Limited(listener, room) for listener in listeners]
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(_accept, attend, limited, connections)
                yield urls
                accepting.cancel_scope.cancel(reason="the service stops")
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + door.graceful_timeout
            outer.start_soon(_cut, door)
        outer.cancel_scope.cancel(reason="every connection has ended")


class _Connection(TCPServer):
    """Hypercorn's, with an idle timer that runs when it should.

    Its own stops at the first line of HTTP/2 without TLS, for good where no request follows; and runs on when the
    client has gone, whose connection would take up room until it ends.
    """

    async def _read_data(self) -> None:
        data = b"-"
        while data:
            try:
                data = bytes(await self.stream.receive_some(_PIECE))
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            await self.protocol.handle(RawData(data))
            await self._mind_idle()
        await self.protocol.handle(Closed())
        await self.idle_task.stop()

    async def _mind_idle(self) -> None:
        spoken = self.protocol.protocol
        if isinstance(spoken, H2Protocol) and not spoken.streams and self.idle_task._handle is None:  # noqa: SLF001
            await self.idle_task.restart(self._task_group, self._idle_timeout)


class _WholeAnswers:
    """Lets the last step of an answer come to its end, which readies the connection for the next request or closes it.

    Hypercorn tells the app in that step that the request is over, quart-trio then cancels what handles it, and that is
    the very task the step runs in (0.18 and 0.12): no connection was ever closed for being idle, nor for having
    been asked to.
    """

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: Callable[[ASGISendEvent], Awaitable[None]],
        sync_spawn: Callable[..., Any],  # noqa: ARG002 - hypercorn's names
        call_soon: Callable[..., Any],  # noqa: ARG002
    ) -> None:
        async def send_whole(message: ASGISendEvent) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            with trio.CancelScope(shield=last, deadline=trio.current_time() + _LAST_STEP if last else math.inf):
                await send(message)

        await self._app(scope, receive, send_whole)


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


async def _cut(door: Listening) -> None:
    await trio.sleep(door.graceful_timeout)
    for stream in door.open_streams:
        cut(stream)


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
