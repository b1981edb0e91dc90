"""The API's listener: binds the addresses and loads TLS before anything else starts.

An address in use or a key that does not fit its certificate is reported before any job is touched.
Owns the sockets and the table of open connections; ``tls.context`` owns the certificates, ``config`` the limits
of a connection.
"""

from __future__ import annotations

import copy
import socket
from errno import EADDRINUSE
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from hypercorn.utils import repr_socket_addr

from provisioner.config.schema import is_local
from provisioner.contracts.errors import ConfigError
from provisioner.server.config import server_config
from provisioner.server.connection_table import ConnectionTable
from provisioner.server.send_timeout import SendTimeoutStream
from provisioner.server.unix_socket import bind_unix, remove_unix
from provisioner.tls.context import TlsContext

if TYPE_CHECKING:
    import os

    from provisioner.config import ServerSettings


class Listener:
    """The addresses of the API, its TLS state and its connections."""

    def __init__(self, server: ServerSettings) -> None:
        self.config = server_config(server)
        self.tls = TlsContext(server)
        self.connections = ConnectionTable(server.max_connections, server.max_connections_per_address)
        self._allow_plain_http = server.allow_plain_http
        self._sockets: list[socket.socket] = []
        self._bound: dict[Path, os.stat_result] = {}

    def bind(self) -> None:
        """Load TLS and bind the addresses; no client can connect yet. Raises ConfigError."""
        self.tls.load()
        for address in self.config.bind:
            try:
                self._sockets += self._create(address)
            except OSError as error:
                hint = "; stop the program that does, or choose another address" if error.errno == EADDRINUSE else ""
                raise ConfigError(f"cannot listen on {address}: {error.strerror}{hint}") from error
        if self.tls.context is None and not self._allow_plain_http:
            for sock in self._sockets:
                _check_local(sock)  # the configuration check has not seen the address of a passed socket

    def _create(self, address: str) -> list[socket.socket]:
        if not address.startswith("unix:"):
            config = copy.copy(self.config)
            config.bind = [address]
            return config.create_sockets().insecure_sockets
        path = Path(address.removeprefix("unix:"))
        sock = bind_unix(path)
        self._bound[path] = path.lstat()
        return [sock]

    def remove_sockets(self) -> None:
        """Remove the unix sockets that ``bind`` has created."""
        for path, bound in self._bound.items():
            remove_unix(path, bound)

    def listen(self) -> tuple[list[str], list[trio.abc.Listener[trio.abc.Stream]]]:
        """Let clients connect; return the urls and the listeners, in the same order."""
        assert self._sockets, "bind() comes first"
        urls: list[str] = []
        listeners: list[trio.abc.Listener[trio.abc.Stream]] = []
        for sock in self._sockets:
            sock.listen(self.config.backlog)
            plain = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            listeners.append(_TlsListener(plain, self.tls))
            address = repr_socket_addr(sock.family, sock.getsockname())
            scheme = "http" if self.tls.context is None else "https"
            urls.append(address if sock.family == socket.AF_UNIX else f"{scheme}://{address}")
        return urls, listeners

    def close_outdated(self) -> int:
        """Close the connections whose client certificate an earlier TLS context accepted; return how many.

        Which authority signed such a certificate is no longer known. A client that is still valid reconnects.
        """
        return self.connections.close_where(lambda connection: self.tls.is_outdated(connection.stream))


class _TlsListener(trio.abc.Listener[trio.abc.Stream]):
    """A listener that uses the current TLS context for each connection, so new certificates need no new socket.

    A unix socket needs no TLS, because the bytes stay in the kernel; it has TLS only if every client must present a
    certificate, which no other way can.
    """

    def __init__(self, plain: trio.SocketListener, tls: TlsContext) -> None:
        self._plain = plain
        self._tls = tls

    async def accept(self) -> trio.abc.Stream:
        stream = SendTimeoutStream(await self._plain.accept())
        return self._tls.wrap(stream) if self._has_tls() else stream

    def _has_tls(self) -> bool:
        is_unix = self._plain.socket.family == socket.AF_UNIX
        return self._tls.context is not None and (not is_unix or self._tls.server.client_certificate == "required")

    async def aclose(self) -> None:
        await self._plain.aclose()


def _check_local(sock: socket.socket) -> None:
    """Raise ConfigError if a socket for plain HTTP can be reached from another machine."""
    if sock.family != socket.AF_UNIX and not is_local(f"{sock.getsockname()[0]}:0"):
        raise ConfigError(
            f"{repr_socket_addr(sock.family, sock.getsockname())}, a socket passed to the service, would be served "
            "over plain HTTP, which exposes tokens on the network; set tls_certificate and tls_key, or "
            "allow_plain_http = true"
        )
