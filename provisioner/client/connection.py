"""What both clients need of httpx: arguments from the settings, and errors in place of its own."""

from __future__ import annotations

import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from provisioner import __version__
from provisioner.client.errors import SettingsError, UnreachableError
from provisioner.client.requests import EVENT_TIMEOUT
from provisioner.client.settings import ClientSettings, client_file, resolve, unix_path

if TYPE_CHECKING:
    from collections.abc import Iterator

# Seconds; a connection is made quickly or not at all.
CONNECT_TIMEOUT = 5.0
EVENT_TIMEOUTS = httpx.Timeout(EVENT_TIMEOUT, connect=CONNECT_TIMEOUT)


def timeouts(seconds: float) -> httpx.Timeout:
    """Return httpx's limits for a response that may take ``seconds``."""
    return httpx.Timeout(seconds, connect=CONNECT_TIMEOUT)


def settings_from(given: dict[str, str | None]) -> ClientSettings:
    """Return the settings, completed from the environment and ``lvp.toml``. Raises SettingsError."""
    return resolve(given, os.environ, client_file(os.environ))


def arguments(settings: ClientSettings) -> dict[str, Any]:
    """Return the arguments for an httpx client, without its transport. Raises SettingsError."""
    headers = {"Accept": "application/json", "User-Agent": f"libvirt-volume-provisioner-client/{__version__}"}
    if settings.token is not None:
        headers["X-API-Token"] = settings.token
    return {
        "base_url": "http://localhost" if settings.url.startswith("unix:") else settings.url,
        "headers": headers,
        "verify": _tls(settings),
        # A proxy from the environment cannot reach this machine's loopback.
        "trust_env": not settings.loopback,
        "follow_redirects": False,
    }


def socket_of(settings: ClientSettings) -> str | None:
    """Return the path of the unix socket, if the server has one."""
    path = unix_path(settings.url)
    return None if path is None else str(path)


def _tls(settings: ClientSettings) -> ssl.SSLContext | bool:
    if not settings.url.startswith("https://"):
        return False  # loading the CAs takes longer than a request
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.cert is not None:
            context.load_cert_chain(settings.cert, settings.key, password="")
    except OSError as error:
        files = ", ".join(str(file) for file in (settings.ca, settings.cert, settings.key) if file is not None)
        raise SettingsError(f"{files or 'the CAs of the system'} cannot be used: {error}") from error
    return context


@contextmanager
def transport_errors(url: str) -> Iterator[None]:
    """Turn the exceptions of httpx into those of the client."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise UnreachableError(f"{url} cannot be reached: {error or type(error).__name__}", lost=False) from error
    except httpx.TransportError as error:
        words = "did not answer in time" if isinstance(error, httpx.TimeoutException) else f"broke off: {error}"
        raise UnreachableError(f"the request to {url} {words}", lost=True) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise SettingsError(f"the request to {url} cannot be made: {error}") from error
