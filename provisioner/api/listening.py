"""Where the API listens: addresses taken and certificates read before anything else is begun.

An address in use or a key that does not fit is found out first, before any job is touched, and said in one sentence.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from provisioner import systemd
from provisioner.api.peer_tls import MutualTlsConfig
from provisioner.contracts.errors import ConfigError

if TYPE_CHECKING:
    from hypercorn.config import Sockets

    from provisioner.config import Config, ServerSettings

# Answers under way when the API stops may take this long, in seconds.
_GRACE = 3.0


class Listening(MutualTlsConfig):
    """Hypercorn's config, with sockets and TLS context that are there already when it asks for them."""

    _taken: Sockets | None = None
    _context: ssl.SSLContext | None = None

    def take(self) -> None:
        """Bind the addresses and read the certificates. Raises ConfigError. Nobody is answered yet."""
        self._context = self._read_certificates()
        try:
            self._taken = super().create_sockets()
        except OSError as error:
            raise ConfigError(f"cannot listen on {', '.join(self.bind)}: {error.strerror}") from error

    def create_sockets(self) -> Sockets:
        return self._taken or super().create_sockets()

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self._context or super().create_ssl_context()

    def _read_certificates(self) -> ssl.SSLContext | None:
        files = [name for name in (self.certfile, self.keyfile, self.ca_certs) if name]
        for name in files:
            try:
                with open(name, "rb"):  # noqa: PTH123 - whether it can be read; OpenSSL's own error names no file
                    pass
            except OSError as error:
                raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
        try:
            return super().create_ssl_context()
        except OSError as error:  # ssl.SSLError is one
            reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
            raise ConfigError(f"TLS cannot be set up from {', '.join(files)}: {_words(reason)}") from error


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


def listening(config: Config) -> Listening:
    """How hypercorn is to listen: passed sockets before the config's addresses, TLS where there is a certificate."""
    made = Listening()
    made.bind = [f"fd://{fd}" for fd in systemd.passed_sockets()] or list(config.server.bind)
    _secure(made, config.server)
    made.graceful_timeout = _GRACE
    made.include_server_header = False
    made.alpn_protocols = ["h2", "http/1.1"]
    made.accesslog = None
    made.errorlog = None
    return made


def _secure(made: Listening, server: ServerSettings) -> None:
    made.certfile, made.keyfile, made.ca_certs = server.tls_certificate, server.tls_key, server.client_ca
    made.keyfile_password = ""  # a key under a password is refused; OpenSSL would ask for it at the terminal
    made.client_certificate_required = server.client_certificate == "required"
