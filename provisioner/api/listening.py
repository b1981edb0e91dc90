"""Where the API listens: addresses taken and certificates read before anything else is begun.

An address in use or a key that does not fit is found out first, before any job is touched, and said in one sentence.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, TypeVar

import trio
from hypercorn.utils import repr_socket_addr

from provisioner import systemd
from provisioner.api.papers import NO_PAPERS, read_papers
from provisioner.api.patience import PatientStream
from provisioner.api.peer_tls import MutualTlsConfig
from provisioner.config import ServerSettings
from provisioner.config.schema import is_local
from provisioner.contracts.errors import ConfigError

if TYPE_CHECKING:
    from hypercorn.config import Sockets

    from provisioner.config import Config

T = TypeVar("T", bound=trio.abc.Stream)

# Answers under way when the API stops may take this long, in seconds.
_GRACE = 3.0
# A client that does not speak TLS keeps its place no longer than this, in seconds.
_HANDSHAKE = 10.0
# Between requests, and for the head of the first, in seconds. Longer than a client's pause between two looks at a job.
_IDLE = 10.0
# Bytes of a request's head. A token, a request id and an idempotency key together are under 1 KiB.
_MAX_HEAD = 16 * 1024
# Requests of one HTTP/2 connection under way at once; each may hold a body of 64 KiB.
_MAX_STREAMS = 20


class Listening(MutualTlsConfig):
    """Hypercorn's config, and the sockets and the TLS context made from it."""

    max_connections = 256
    max_connections_per_address = 64
    allow_plain_http = False
    papers = NO_PAPERS
    server = ServerSettings()
    _sockets: Sockets | None = None
    _context: ssl.SSLContext | None = None

    def __init__(self) -> None:
        super().__init__()
        self.open_streams: set[trio.abc.Stream] = set()
        """Every connection there is."""

    def take(self) -> None:
        """Bind the addresses and read the certificates. Raises ConfigError. Nobody is answered yet."""
        self._context = self._read_certificates()
        try:
            self._sockets = self.create_sockets()
        except OSError as error:
            raise ConfigError(f"cannot listen on {', '.join(self.bind)}: {error.strerror}") from error
        if self._context is None and not self.allow_plain_http:
            for sock in self._sockets.insecure_sockets:
                _check_local(sock)  # of those passed to us, nobody has looked at the address yet

    def listen(self) -> tuple[list[str], list[trio.abc.Listener[trio.abc.Stream]]]:
        """The urls and the listeners of what was taken; clients can connect from now on."""
        assert self._sockets is not None, "take() comes first"
        urls: list[str] = []
        listeners: list[trio.abc.Listener[trio.abc.Stream]] = []
        for sock in [*self._sockets.secure_sockets, *self._sockets.insecure_sockets]:
            sock.listen(self.backlog)
            plain = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            scheme = "http" if self._context is None else "https"
            listeners.append(_Listener(plain, self))
            urls.append(f"{scheme}://{repr_socket_addr(sock.family, sock.getsockname())}")
        return urls, listeners

    def reread(self, server: ServerSettings) -> bool:
        """Use the certificates that ``server`` names for connections from now on; whether an authority went.

        Whether there is TLS at all stays as it was at the start. Raises ConfigError and keeps the old.
        """
        anew = Listening()
        _secure(anew, server)
        context = anew._read_certificates()
        if context is None or self._context is None:
            return False
        gone = self.papers.authorities - anew.papers.authorities
        self._context, self.papers, self.server = context, anew.papers, server
        return bool(gone)

    def cut_proven(self) -> int:
        """Close the connections whose client proved itself by a certificate in an earlier context; how many.

        Which authority it was under is not known any more. Who is still good connects anew.
        """
        proven = [stream for stream in self.open_streams if self._is_proven_before(stream)]
        for stream in proven:
            cut(stream)
        return len(proven)

    def _is_proven_before(self, stream: trio.abc.Stream) -> bool:
        if not isinstance(stream, trio.SSLStream) or stream.context is self._context:
            return False
        try:
            return bool(stream.getpeercert(binary_form=True))
        except (ValueError, trio.NeedHandshakeError):
            return True  # about to prove itself, by what no longer counts

    def receive(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """The connection as hypercorn gets it; a handshake of TLS is still to come."""
        patient = PatientStream(stream)
        return patient if self._context is None else self.secure(patient)

    def secure(self, stream: T) -> trio.SSLStream[T]:
        """The connection under TLS; its handshake is still to come."""
        assert self._context is not None, "there is a certificate"
        return trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)

    def _read_certificates(self) -> ssl.SSLContext | None:
        files = [name for name in (self.certfile, self.keyfile, self.ca_certs, self.client_crl) if name]
        for name in files:
            try:
                with open(name, "rb"):  # noqa: PTH123 - whether it can be read; OpenSSL's own error names no file
                    pass
            except OSError as error:
                raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
        try:
            context = self.create_ssl_context()
        except OSError as error:  # ssl.SSLError is one
            reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
            raise ConfigError(f"TLS cannot be set up from {', '.join(files)}: {_words(reason)}") from error
        self.papers = read_papers(self.server)
        return context


class _Listener(trio.abc.Listener[trio.abc.Stream]):
    """Asks for the TLS context at each connection, so that new certificates need no new socket."""

    def __init__(self, plain: trio.SocketListener, door: Listening) -> None:
        self._plain = plain
        self._door = door

    async def accept(self) -> trio.abc.Stream:
        return self._door.receive(await self._plain.accept())

    async def aclose(self) -> None:
        await self._plain.aclose()


def cut(stream: trio.abc.Stream) -> None:
    """Close the socket under whoever uses the stream; hypercorn shields sending from being cancelled."""
    getattr(stream, "transport_stream", stream).socket.close()  # type: ignore[union-attr]


def _check_local(sock: socket.socket) -> None:
    """Raise ConfigError where a socket for plain HTTP can be reached from elsewhere."""
    if sock.family != socket.AF_UNIX and not is_local(f"{sock.getsockname()[0]}:0"):
        raise ConfigError(
            f"{repr_socket_addr(sock.family, sock.getsockname())}, a socket passed to the service, would be served "
            "over plain HTTP, where tokens can be read on the way; give tls_certificate and tls_key, or set "
            "allow_plain_http = true"
        )


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


def listening(config: Config) -> Listening:
    """How hypercorn is to listen: passed sockets before the config's addresses, TLS where there is a certificate."""
    made = Listening()
    made.bind = [f"fd://{fd}" for fd in systemd.passed_sockets()] or list(config.server.bind)
    _secure(made, config.server)
    made.max_connections = config.server.max_connections
    made.max_connections_per_address = config.server.max_connections_per_address
    made.allow_plain_http = config.server.allow_plain_http
    made.graceful_timeout = _GRACE
    made.ssl_handshake_timeout = _HANDSHAKE
    made.keep_alive_timeout = _IDLE
    made.h11_max_incomplete_size = made.h2_max_header_list_size = _MAX_HEAD
    made.h2_max_concurrent_streams = _MAX_STREAMS
    made.include_server_header = False
    made.alpn_protocols = ["h2", "http/1.1"]
    made.accesslog = None
    made.errorlog = None
    return made


def _secure(made: Listening, server: ServerSettings) -> None:
    made.server = server
    made.certfile, made.keyfile, made.ca_certs = server.tls_certificate, server.tls_key, server.client_ca
    made.client_crl = server.client_crl
    made.tls_minimum = ssl.TLSVersion.TLSv1_3 if server.tls_minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    made.keyfile_password = ""  # a key under a password is refused; OpenSSL would ask for it at the terminal
    made.client_certificate_required = server.client_certificate == "required"
