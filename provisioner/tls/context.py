"""The TLS state of the server: the SSL context for new connections and the expiry dates of its files.

Certificates can be replaced while the server runs: each new connection uses the current context.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TypeVar

import trio

from provisioner.config import ServerSettings
from provisioner.contracts.errors import ConfigError
from provisioner.contracts.small_file import read_small
from provisioner.tls.expiry import NO_TLS_FILES, TlsFiles, read_tls_files
from provisioner.tls.peer_certificate import RecordingContext, RecordingSSLObject

T = TypeVar("T", bound=trio.abc.Stream)

# For TLS 1.2, only suites with forward secrecy and authenticated encryption; TLS 1.3 has no others.
_CIPHERS = "ECDHE+AESGCM"
_PROTOCOLS = ["h2", "http/1.1"]


class TlsContext:
    """The TLS state for new connections; ``context`` is None if the server speaks plain HTTP."""

    def __init__(self, server: ServerSettings | None = None) -> None:
        self.server = server or ServerSettings()
        self.context: ssl.SSLContext | None = None
        self.tls_files: TlsFiles = NO_TLS_FILES

    def load(self) -> None:
        """Read the files of the settings. Raises ConfigError."""
        self.context = _load(self.server)
        self.tls_files = read_tls_files(self.server)

    def reload(self, server: ServerSettings) -> bool:
        """Use the files that ``server`` names for new connections; return whether an authority was removed.

        TLS cannot be turned on or off by this. Raises ConfigError and keeps the old files.
        """
        fresh = TlsContext(server)
        fresh.load()
        if fresh.context is None or self.context is None:
            return False
        removed = self.tls_files.authorities - fresh.tls_files.authorities
        self.context, self.tls_files, self.server = fresh.context, fresh.tls_files, server
        return bool(removed)

    def wrap(self, stream: T) -> trio.SSLStream[T]:
        """Return the stream wrapped in TLS, before its handshake."""
        assert self.context is not None, "there is a certificate"
        return trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)

    def is_outdated(self, stream: trio.abc.Stream) -> bool:
        """Return whether the client of this connection presented a certificate to an earlier context."""
        if not isinstance(stream, trio.SSLStream) or stream.context is self.context:
            return False
        try:
            return bool(stream.getpeercert(binary_form=True))
        except (ValueError, trio.NeedHandshakeError):
            return True  # the handshake in progress uses the old authorities


def _load(server: ServerSettings) -> ssl.SSLContext | None:
    named = (server.tls_certificate, server.tls_key, server.client_ca, server.client_crl)
    files = [name for name in named if name]
    for name in files:
        try:
            read_small(Path(name))  # a pipe would hang OpenSSL, and its own errors do not name the file
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    try:
        return _make_context(server)
    except OSError as error:  # ssl.SSLError is one
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
        raise ConfigError(f"TLS cannot be set up with {', '.join(files)}: {_plain(reason)}") from error


def _make_context(server: ServerSettings) -> ssl.SSLContext | None:
    if server.tls_certificate is None or server.tls_key is None:
        return None
    context = RecordingContext(ssl.PROTOCOL_TLS_SERVER)
    # The strictness of the default context, which depends on the Python version.
    context.verify_flags = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).verify_flags
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(_PROTOCOLS)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if server.tls_minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    # The empty password makes an encrypted key fail; otherwise OpenSSL would prompt on the terminal.
    context.load_cert_chain(server.tls_certificate, server.tls_key, password="")
    if server.client_ca:
        context.load_verify_locations(server.client_ca)
        required = server.client_certificate == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    if server.client_crl:
        context.load_verify_locations(server.client_crl)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    context.sslobject_class = RecordingSSLObject
    # Disable session resumption: a resumed TLS 1.3 session would carry no certificate.
    context.num_tickets = 0
    # Compression: RFC 9113, 9.2.1.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    return context


def _plain(reason: str) -> str:
    return reason.replace("_", " ").lower()
