"""The connection options of one source, and the transport they make: TLS, proxy and addresses."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpcore
import httpx

from provisioner.contracts.errors import SourceError
from provisioner.contracts.http.address_policy import Backend, ClosingSSLSocket, networks
from provisioner.contracts.http.keep_alive import KEEP_IDLE
from provisioner.contracts.http.pools import PoolTransport

if TYPE_CHECKING:
    import trio

    from provisioner.contracts.settings import SecretRef


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The connection options of a source. Times are in seconds, rates in bytes per second."""

    ca_file: str | None = None
    """Replaces the system's certificate authorities."""
    client_certificate: str | None = None
    client_key: str | None = None
    proxy: str | None = None
    proxy_username: str | None = None
    proxy_password: SecretRef | None = None
    trust_env: bool = False
    """Use the proxy that the environment names."""
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    """Without data for this long, a transfer fails. Headers must be complete within both timeouts together."""
    min_rate: int = 1024
    """A transfer slower than this over ``stall_timeout`` fails."""
    connections: int = 16
    rate_limit: int | None = None
    """For all transfers of the source together."""
    any_encoding: bool = False
    """Accept every ``Content-Encoding`` as a label of the stored file; otherwise it must match the file name."""
    prepare_redirects: bool = False
    """Also prepare requests that are redirected to another host."""
    allow_addresses: tuple[str, ...] = ()
    """Networks that are permitted in addition to those of ``address_policy``."""
    stat_with_get: bool = False
    """Request the first byte instead of sending HEAD, which many servers answer wrongly."""


def make_transport(options: HttpOptions, threads: trio.CapacityLimiter) -> PoolTransport:
    """Return a transport with ``options``; ``threads`` limits its look-ups.

    Blocking, because it reads the certificates. Raises SourceError.
    """
    context = _tls(options)
    login = _proxy_login(options)
    limits = {
        "max_connections": None,  # the transport limits them; here abandoned ones would count, too
        "max_keepalive_connections": options.connections,
        "keepalive_expiry": KEEP_IDLE,
    }

    def make(proxy: str | None) -> httpcore.AsyncConnectionPool:
        if proxy is None:
            backend = Backend(networks(options.allow_addresses), threads)
            return httpcore.AsyncConnectionPool(ssl_context=context, network_backend=backend, **limits)  # type: ignore[arg-type]
        url = httpx.URL(proxy)
        auth = login or ((url.username, url.password) if url.username else None)
        return httpcore.AsyncHTTPProxy(
            str(url.copy_with(userinfo=b"")),
            proxy_auth=auth,
            ssl_context=context,
            proxy_ssl_context=ssl.create_default_context() if url.scheme == "https" else None,
            network_backend=Backend(None, threads),
            **limits,  # type: ignore[arg-type]
        )

    return PoolTransport(make, options.proxy, from_environment=options.trust_env)


def read_secret(ref: SecretRef) -> str:
    """Return the secret that ``ref`` refers to. Blocking. Raises SourceError, which never shows the secret."""
    try:
        secret = ref.read(dict(os.environ))
    except KeyError as error:
        raise SourceError(f"the secret {ref} is missing: {error.args[0]} is not set") from error
    except UnicodeDecodeError:
        raise SourceError(f"the secret {ref} is not text") from None  # the cause would reveal the bytes
    except OSError as error:
        raise SourceError(f"the secret {ref} cannot be read: {error.strerror}") from error
    if not secret or not secret.isprintable():
        raise SourceError(f"the secret {ref} is empty or contains line breaks or control characters")
    return secret


def _tls(options: HttpOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        context.sslsocket_class = ClosingSSLSocket
        if options.client_certificate is not None:
            context.load_cert_chain(options.client_certificate, options.client_key, password=_no_password)
    except (OSError, ValueError) as error:
        files = ", ".join(filter(None, (options.ca_file, options.client_certificate, options.client_key)))
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise SourceError(f"the certificates of the source cannot be used ({files}): {reason}") from error
    return context


def _no_password() -> str:
    """Reject encrypted keys, for which OpenSSL would prompt on the terminal."""
    raise ValueError("the client key is encrypted")


def _proxy_login(options: HttpOptions) -> tuple[str, str] | None:
    if options.proxy_username is None or options.proxy_password is None:
        return None
    return options.proxy_username, read_secret(options.proxy_password)
