"""The table of open connections, and the rule for which to close when it is full.

A client that has authenticated (a client certificate in the handshake, or a request with a valid token) keeps its
connection. A new connection replaces one of the others: of the address that has most of them, the one that has been
silent longest. So neither silent clients behind the same address nor a few greedy addresses lock an operator out.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import trio

from provisioner.auth.audit_events import LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Connection:
    """One open connection of the address (or IPv6 network) ``group``."""

    def __init__(self, stream: trio.abc.Stream, group: str) -> None:
        self.stream = stream
        self.group = group
        self.authenticated = False
        self.closed = False
        """Whether this service closed it."""
        self.requests = 0
        """Requests in progress."""

    @property
    def last_received(self) -> float:
        """When the client last sent something, on trio's clock; initially when it connected."""
        return float(self._transport.last_received)  # type: ignore[attr-defined]

    @property
    def _transport(self) -> trio.abc.Stream:
        return getattr(self.stream, "transport_stream", self.stream)

    def close(self) -> None:
        """Close the socket while tasks use it: they cannot be cancelled, as hypercorn shields sending."""
        self.closed = True
        self._transport.socket.close()  # type: ignore[attr-defined]


# The connection that the running task serves.
current: ContextVar[Connection | None] = ContextVar("connection", default=None)


def note_authentication(*, valid: bool) -> None:
    """Note on the current connection whether the credential of its last request was valid."""
    connection = current.get()
    if connection is not None:
        connection.authenticated = valid


class ConnectionTable:
    """The open connections: at most ``most``, and of one address at most ``per_address``."""

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._open: set[Connection] = set()
        self._by_stream: dict[trio.abc.Stream, Connection] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self.on_refused: Callable[[], None] = lambda: None
        """Called for each connection that is refused or closed because the table is full."""

    def __len__(self) -> int:
        return len(self._open)

    async def wait_for_room(self, group: str) -> None:
        """Wait until ``admit`` can admit a connection of the address or refuse it because of the address's limit."""
        while self._is_full() and not self._has_its_share(group) and self._to_replace(group) is None:
            await self._changed.park()

    def admit(self, stream: trio.abc.Stream, group: str) -> Connection | None:
        """Return the new connection's entry, or None if it is refused. May close another to make room."""
        if self._has_its_share(group) or self._is_full():
            own = [one for one in self._open if one.group == group]
            victim = first_to_close(own) if self._has_its_share(group) else self._to_replace(group)
            self.on_refused()
            if victim is None:
                return None
            victim.close()
            self._open.discard(victim)
        newcomer = self._by_stream[stream] = Connection(stream, group)
        self._open.add(newcomer)
        return newcomer

    def _is_full(self) -> bool:
        return len(self._open) >= self._most

    def _count(self, group: str) -> int:
        return sum(one.group == group for one in self._open)

    def _has_its_share(self, group: str) -> bool:
        return group != LOCAL and self._count(group) >= self._per_address  # shared by all unix socket clients

    def _to_replace(self, group: str) -> Connection | None:
        return first_to_close(self._open) or _idle_of_larger_group(self._open, self._count(group) + 1)

    def of(self, stream: trio.abc.Stream) -> Connection:
        """Return the entry of an admitted stream that is not yet released."""
        return self._by_stream[stream]

    def release(self, connection: Connection) -> None:
        """Remove an ended connection from the table."""
        self._open.discard(connection)
        self._by_stream.pop(connection.stream, None)
        self._changed.unpark_all()

    @contextmanager
    def request(self, connection: Connection) -> Iterator[None]:
        """Count a request of the connection as in progress while the block runs."""
        connection.requests += 1
        try:
            yield
        finally:
            connection.requests -= 1
            self._changed.unpark_all()

    def close_where(self, condition: Callable[[Connection], bool]) -> int:
        """Close the connections that meet the condition; return how many."""
        found = [one for one in self._open if condition(one)]
        for connection in found:
            connection.close()
        return len(found)


def first_to_close(candidates: set[Connection] | list[Connection]) -> Connection | None:
    """Return the connection that others may replace; None if all have authenticated.

    It is of the address with most such connections: preferably without a request in progress, then the one whose client
    has been silent longest.
    """
    open_to_all = [one for one in candidates if not one.authenticated]
    share = Counter(one.group for one in open_to_all)
    return min(open_to_all, key=lambda one: (-share[one.group], one.requests > 0, one.last_received), default=None)


def _idle_of_larger_group(candidates: set[Connection], size: int) -> Connection | None:
    """Return an authenticated connection without a request, of the address with most connections, if over ``size``."""
    share = Counter(one.group for one in candidates)
    idle = [one for one in candidates if not one.requests and share[one.group] > size]
    return min(idle, key=lambda one: (-share[one.group], one.last_received), default=None)
