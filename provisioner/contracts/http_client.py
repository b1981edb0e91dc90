"""The httpx client of one source: TLS, proxy, time limits, secrets. Owns how it is made; sends nothing."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import httpx

from provisioner.contracts.errors import SourceError
from provisioner.contracts.http_connect import CheckedTransport, ClosingSSLSocket, networks

if TYPE_CHECKING:
    from provisioner.contracts.settings import SecretRef


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How to talk to a server.

    ``ca_file`` is trusted instead of the system's authorities. ``stall_timeout``: seconds without a byte after
    which a transfer counts as dead. ``rate_limit``: bytes a second, of all transfers together. ``any_encoding``
    takes a ``Content-Encoding`` for a mere label of what is stored; else only the one that fits the name is.
    ``prepare_redirects``: whether a redirect to another host is prepared too; else it goes there without.
    ``allow_addresses``: networks to connect to although a name leads to this host itself or to another place where
    nobody keeps images (``http_connect``).
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
    connections: int = 16
    rate_limit: int | None = None
    any_encoding: bool = False
    prepare_redirects: bool = False
    allow_addresses: tuple[str, ...] = ()


def make_client(options: HttpOptions) -> httpx.Client:
    """A client as ``options`` say. Reads the certificates: call it in a thread. Raises SourceError."""
    context = _tls(options)
    limits = httpx.Limits(max_connections=options.connections, max_keepalive_connections=4)
    client = httpx.Client(
        verify=context,
        proxy=_proxy(options),
        trust_env=options.trust_env,
        timeout=httpx.Timeout(options.stall_timeout, connect=options.connect_timeout),
        limits=limits,
        follow_redirects=False,
        headers={"User-Agent": "libvirt-volume-provisioner"},
        # No cookie of one image's server is ever carried into the next request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )
    _check_addresses(client, CheckedTransport(context, limits, networks(options.allow_addresses)))
    return client


def _check_addresses(client: httpx.Client, transport: CheckedTransport) -> None:
    """Let ``transport`` carry what goes to servers themselves; proxies have transports of their own."""
    # Given to the client when it is made, a transport would turn the environment's proxies off.
    if not isinstance(getattr(client, "_transport", None), httpx.HTTPTransport):
        raise TypeError("this httpx keeps its transport elsewhere: addresses would not be checked")
    client._transport.close()  # noqa: SLF001
    client._transport = transport  # noqa: SLF001


def read_secret(ref: SecretRef) -> str:
    """The secret ``ref`` leads to, fit for a header. Blocking. Raises SourceError, which never shows it."""
    try:
        secret = ref.read(dict(os.environ))
    except KeyError as error:
        raise SourceError(f"the secret {ref} is not there: {error.args[0]} is not set") from error
    except UnicodeDecodeError:
        raise SourceError(f"the secret {ref} is not text") from None  # its cause would show the bytes
    except OSError as error:
        raise SourceError(f"the secret {ref} cannot be read: {error.strerror}") from error
    if not secret or not secret.isprintable():
        raise SourceError(f"the secret {ref} is empty or holds line breaks or control characters")
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
    """OpenSSL would ask on the terminal."""
    raise ValueError("the client key is encrypted")


def _proxy(options: HttpOptions) -> httpx.Proxy | None:
    if options.proxy is None:
        return None
    if options.proxy_username is None or options.proxy_password is None:
        return httpx.Proxy(options.proxy)
    return httpx.Proxy(options.proxy, auth=(options.proxy_username, read_secret(options.proxy_password)))
