"""Hypercorn's configuration: the limits and timeouts of a connection, each with its reason. Opens no socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypercorn.config import Config as HypercornConfig

from provisioner.linux import systemd

if TYPE_CHECKING:
    from provisioner.config import ServerSettings

# Seconds that requests in progress get when the API stops.
_SHUTDOWN_GRACE = 3.0
# Seconds for a TLS handshake; a client that does not speak TLS is disconnected after them.
_HANDSHAKE_TIMEOUT = 10.0
# Seconds between requests, and for the head of the first. Clients that poll a job pause for less.
_IDLE_TIMEOUT = 10.0
# Bytes of a request's head. A token, a request id and an idempotency key together are under 1 KiB.
_MAX_HEAD = 16 * 1024
# Concurrent requests of one HTTP/2 connection; each may hold a body of 64 KiB.
_MAX_STREAMS = 20


def server_config(server: ServerSettings) -> HypercornConfig:
    """Return hypercorn's configuration. Sockets passed by systemd replace the configured addresses.

    Hypercorn does no TLS: its streams are already wrapped (``tls.context``).
    """
    config = HypercornConfig()
    config.bind = [f"fd://{fd}" for fd in systemd.passed_sockets()] or list(server.bind)
    config.graceful_timeout = _SHUTDOWN_GRACE
    config.ssl_handshake_timeout = _HANDSHAKE_TIMEOUT
    config.keep_alive_timeout = _IDLE_TIMEOUT
    config.h11_max_incomplete_size = config.h2_max_header_list_size = _MAX_HEAD
    config.h2_max_concurrent_streams = _MAX_STREAMS
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
