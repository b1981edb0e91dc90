"""Serves the API on the listener's connections. An error on one connection ends only that connection.

Owns the accept loop and the log of refused handshakes and failed connections. ``connection_table`` decides which
connections stay open when it is full.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog
import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState

from provisioner.auth.audit_events import LOCAL, group_of
from provisioner.auth.authenticator import has_token
from provisioner.contracts.tasks import first_cause
from provisioner.server.connection_table import current
from provisioner.server.handshake import CERTIFICATE_REFUSED, Refusal, do_handshake, send_refusal
from provisioner.server.hypercorn_quirks import HttpConnection, WholeResponses, send_in_time
from provisioner.server.log_limit import WINDOW, LogLimit
from provisioner.server.request_queue import RequestQueue
from provisioner.tls.peer_certificate import peer_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendEvent, Scope
    from quart_trio import QuartTrio

    from provisioner.auth.audit_events import Auditor
    from provisioner.server.connection_table import Connection, ConnectionTable
    from provisioner.server.listener import Listener

log = structlog.get_logger(__name__)

T = TypeVar("T", bound=trio.abc.Stream)


@asynccontextmanager
async def serving(app: QuartTrio, listener: Listener, auditor: Auditor) -> AsyncIterator[list[str]]:
    """Answer requests while the block runs; yield the urls. Requests in progress then get a short grace period."""
    server = _Server(app, listener, auditor)
    urls, sockets = listener.listen()
    limited = [_LimitedListener(socket, listener.connections) for socket in sockets]
    async with trio.open_nursery() as background:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                background.start_soon(server.report_suppressed)
                accepting.start_soon(_accept, server.handle, limited, connections)
                yield urls
                accepting.cancel_scope.cancel(reason="the service stops")
            await server.context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + listener.config.graceful_timeout
            background.start_soon(_close_after_grace, listener)
        background.cancel_scope.cancel(reason="every connection has ended")
        server.log_suppressed()


class _Server:
    """The state that all connections share, and the handler of one connection."""

    def __init__(self, app: ASGIFramework, listener: Listener, auditor: Auditor) -> None:
        self.context = WorkerContext(None)
        self._app = WholeResponses(_Scheduled(app, listener.connections))
        self._listener = listener
        self._auditor = auditor
        self._refused, self._broken = LogLimit(), LogLimit()
        listener.connections.on_refused = auditor.connection_refused

    async def handle(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        """Serve the connection to its end; never raise because of an error on it."""
        address = _address(stream)
        connection = self._listener.connections.of(stream)
        current.set(connection)
        try:
            if await self._complete_handshake(stream, connection, address):
                state = LifespanState(ConnectionState({}))
                await HttpConnection(self._app, self._listener.config, self.context, state, stream)
        except* Exception as group:  # noqa: BLE001 - the boundary: an error on one connection must not end another
            if not connection.closed and self._broken.allows(connection.group, trio.current_time()):
                log.warning("a connection failed", reason=repr(first_cause(group)))
        finally:
            self._listener.connections.release(connection)
            await trio.aclose_forcefully(stream)

    async def _complete_handshake(self, stream: trio.abc.Stream, connection: Connection, address: str) -> bool:
        """Do the TLS handshake, if there is one; return whether the connection can be served."""
        if not isinstance(stream, trio.SSLStream):
            return True

        def authenticated() -> None:
            connection.authenticated = True

        try:
            refusal = await do_handshake(stream, self._listener.config.ssl_handshake_timeout, authenticated)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        if refusal is None:
            return True
        if not connection.closed:
            self._note(refusal, address)
            await send_refusal(stream, refusal)
        return False

    def _note(self, refusal: Refusal, address: str) -> None:
        written = self._refused.allows(group_of(address), trio.current_time())
        if written:
            more = {} if refusal.request_id is None else {"request_id": refusal.request_id}
            log.warning(refusal.event, address=address, reason=refusal.reason, **more)
        if refusal.event == CERTIFICATE_REFUSED:
            self._auditor.handshake_refused(address, refusal.reason, written=written)

    async def report_suppressed(self) -> None:
        """Log how many lines were left out, once per window, until cancelled."""
        while True:
            await trio.sleep(WINDOW)
            self.log_suppressed()

    def log_suppressed(self) -> None:
        """Log how many lines were left out since the last time, if any were."""
        for limit, kind in ((self._refused, "refused handshakes"), (self._broken, "failed connections")):
            if count := limit.take_suppressed():
                log.warning("further events were not logged", kind=kind, count=count)


class _Scheduled:
    """An app that queues requests without a credential and counts each connection's requests in progress."""

    def __init__(self, app: ASGIFramework, connections: ConnectionTable) -> None:
        self._app = app
        self._connections = connections
        self._queue = RequestQueue()

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: Callable[[ASGISendEvent], Awaitable[None]]
    ) -> None:
        connection = current.get()
        if connection is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_credential = peer_certificate() is not None or has_token(name for name, _ in scope["headers"])
        with self._connections.request(connection):
            if has_credential:
                await self._app(scope, receive, send_in_time(send, connection.close))
                return
            async with self._queue.turn(connection.group, scope["path"]) as leave:

                async def leave_and_send(message: ASGISendEvent) -> None:
                    leave()  # a client that does not read its response must not hold the slot
                    await send(message)

                await self._app(scope, receive, leave_and_send)


async def _close_after_grace(listener: Listener) -> None:
    await trio.sleep(listener.config.graceful_timeout)
    listener.connections.close_where(lambda _: True)


def _address(stream: trio.abc.Stream) -> str:
    """Return the peer's address; ``local`` for a unix socket, or if the peer has disconnected."""
    try:
        peer = getattr(stream, "transport_stream", stream).socket.getpeername()  # type: ignore[union-attr]
    except OSError:
        return LOCAL
    return str(peer[0]) if isinstance(peer, tuple) else LOCAL


async def _accept(
    handle: object, listeners: list[_LimitedListener[trio.abc.Stream]], connections: trio.Nursery
) -> None:
    await trio.serve_listeners(handle, listeners, handler_nursery=connections)  # type: ignore[arg-type]


class _LimitedListener(trio.abc.Listener[T], Generic[T]):
    """A listener that accepts what the table admits. When full, one connection waits here, others in the kernel."""

    def __init__(self, listener: trio.abc.Listener[T], connections: ConnectionTable) -> None:
        self._listener = listener
        self._connections = connections

    async def accept(self) -> T:
        while True:
            stream = await self._listener.accept()
            group = group_of(_address(stream))
            try:
                await self._connections.wait_for_room(group)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            if self._connections.admit(stream, group) is not None:
                return stream
            await trio.aclose_forcefully(stream)

    async def aclose(self) -> None:
        await self._listener.aclose()
