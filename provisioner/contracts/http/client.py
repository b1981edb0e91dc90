"""Create the transport of one source: TLS, proxy and secrets."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpcore
import httpx

from provisioner.contracts.errors import SourceError
from provisioner.contracts.http.address_policy import Backend, ClosingSSLSocket, networks
from provisioner.contracts.http.pools import PoolTransport

if TYPE_CHECKING:
    import trio

    from provisioner.contracts.settings import SecretRef


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """The connection options of a source.

    ``ca_file`` replaces the system's certificate authorities. A transfer fails after ``stall_timeout`` seconds without
    data, or with less than ``min_rate`` bytes per second over that time. A response's headers must be complete within
    ``connect_timeout`` plus ``stall_timeout``. ``rate_limit`` is in bytes per second for all transfers together.
    ``any_encoding`` accepts every ``Content-Encoding`` as a label of the stored file; otherwise it must match the file
    name. ``prepare_redirects`` also prepares requests that are redirected to another host. ``allow_addresses`` are
    networks that are permitted in addition to those of ``address_policy``. ``stat_with_get`` asks for the first byte
    instead of sending HEAD, which many servers answer wrongly.
    """

    ca_file: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None
    proxy: str | None = None
    proxy_username: str | None = None
    proxy_password: SecretRef | None = None
    trust_env: bool = False
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    min_rate: int = 1024
    connections: int = 16
    rate_limit: int | None = None
    any_encoding: bool = False
    prepare_redirects: bool = False
    allow_addresses: tuple[str, ...] = ()
    stat_with_get: bool = False


def make_transport(options: HttpOptions, threads: trio.CapacityLimiter) -> httpx.AsyncBaseTransport:
    """Return a transport with ``options``; ``threads`` limits its look-ups.

    Blocking, because it reads the certificates. Raises SourceError.
    """
    context = _tls(options)
    login = _proxy_login(options)
    limits = {"max_connections": options.connections, "max_keepalive_connections": 4, "keepalive_expiry": 5.0}

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
