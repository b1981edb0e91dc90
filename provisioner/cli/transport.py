"""HTTP requests to the server: TLS, proxies and time limits. ``transport_errors`` has the messages.

Uses only the standard library: importing httpx, which the daemon uses for downloads, takes 0.5 s of processor time, ten
times as long as the request itself.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.request
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from urllib.error import HTTPError

from provisioner.cli.client_settings import unix_path
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.transport_errors import CONNECT_TIMEOUT, UnreachableError, transport_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from provisioner.cli.client_settings import ClientSettings

__all__ = ["TlsContexts", "Transport", "UnreachableError", "tls_context"]

# The most bytes of an answer, and of a line of an event stream: a page of a thousand jobs has some 2 MB.
MOST_BYTES = 64 * 2**20


class Transport:
    """HTTP transport to one server."""

    def __init__(self, settings: ClientSettings, contexts: TlsContexts | None = None) -> None:
        self._settings = settings
        context = tls_context(settings) if contexts is None else contexts.context(settings)
        self._opener = urllib.request.build_opener(
            # A proxy from the environment cannot reach this machine's loopback.
            urllib.request.ProxyHandler({} if settings.loopback else None),
            _PlainHandler(unix_path(settings.url)),
            _TlsHandler(context=context),
            _NoRedirects(),
        )
        self._opener.addheaders = []

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None, limit: float
    ) -> tuple[int, str]:
        """Return the response's status and text, for any status. Waits ``limit`` seconds. Raises CliError.

        A body in pieces needs the header Content-Length.
        """
        with transport_errors(self._settings):
            request = self._request(method, path, headers, body)
            try:
                with self._opener.open(request, timeout=limit) as response:
                    return response.status, self._text(response)
            except HTTPError as error:
                with error:
                    return error.code, self._text(error)

    def _text(self, response: _Readable) -> str:
        data = response.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UnreachableError(f"{self._settings.url} answered with more than 64 MiB", temporary=False)
        return data.decode(errors="replace")

    def lines(self, path: str, headers: Mapping[str, str], limit: float) -> Iterator[str]:
        """Yield the lines of an event stream as they come, until it ends or nothing comes for ``limit`` seconds.

        Yields nothing if the server answers anything else. An error is an end: another request tells what it is.
        """
        try:
            with self._opener.open(self._request("GET", path, headers), timeout=limit) as response:
                if response.headers.get_content_type() != "text/event-stream":
                    return
                while line := response.readline(MOST_BYTES):
                    yield line.decode(errors="replace").rstrip("\r\n")
        except HTTPError as error:
            error.close()
        except (OSError, http.client.HTTPException):
            return

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> urllib.request.Request:
        base = "http://localhost" if self._settings.url.startswith("unix:") else self._settings.url
        return urllib.request.Request(  # noqa: S310 - the scheme is http or https, see ``check_url``
            base + path, body, dict(headers), method=method
        )


class TlsContexts:
    """TLS contexts of clients with the same CA and certificate, which share them. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[Path | None, ...], ssl.SSLContext | None] = {}

    def context(self, settings: ClientSettings) -> ssl.SSLContext | None:
        """Return the context, or None for plain HTTP. Raises CliError."""
        if not settings.url.startswith("https://"):
            return None
        key = (settings.ca, settings.cert, settings.key)
        with self._lock:
            if key not in self._known:
                self._known[key] = tls_context(settings)
            return self._known[key]


class _Readable(Protocol):
    def read(self, amount: int, /) -> bytes: ...


class _EarlyAnswers(http.client.HTTPConnection):
    """A connection that reads the answer also if the server closes it before the end of an upload."""

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **more: Any) -> None:
        try:
            super().request(method, url, body, headers or {}, **more)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            if body is None or isinstance(body, bytes) or self.sock is None:
                raise
        except TimeoutError as error:
            if self.sock is None:
                raise
            raise http.client.HTTPException(f"it took nothing for {self.timeout:g} s") from error


class _PlainConnection(_EarlyAnswers):
    """A connection with a separate connect timeout; the standard library has one timeout for everything."""

    def connect(self) -> None:
        answer_limit, self.timeout = self.timeout, CONNECT_TIMEOUT
        try:
            super().connect()
        except TimeoutError:
            self.close()  # in the TLS handshake, too, nothing was sent
            raise
        self.sock.settimeout(answer_limit)


class _TlsConnection(_PlainConnection, http.client.HTTPSConnection):
    """The same with TLS: ``super()`` above is then ``HTTPSConnection``."""


class _UnixConnection(_EarlyAnswers):
    """A connection to a unix socket."""

    def __init__(self, *args: Any, socket_path: Path, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT)
        self.sock.connect(str(self._socket_path))
        self.sock.settimeout(self.timeout)


class _PlainHandler(urllib.request.HTTPHandler):
    """A handler of ``http://``, which goes to a unix socket if the server has one."""

    def __init__(self, socket_path: Path | None) -> None:
        super().__init__()
        self._socket_path = socket_path

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        if self._socket_path is None:
            return self.do_open(_PlainConnection, request)
        return self.do_open(partial(_UnixConnection, socket_path=self._socket_path), request)


class _TlsHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._own_context = context

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, request, context=self._own_context)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A handler that follows no redirects: the API has none, and following one would leak the token."""

    def redirect_request(self, *args: Any) -> None:
        del args


def tls_context(settings: ClientSettings) -> ssl.SSLContext | None:
    """Return the TLS context with the CAs and the client certificate, or None for plain HTTP. Raises CliError."""
    if not settings.url.startswith("https://"):
        return None  # loading the CAs takes longer than the request
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except OSError as error:
        raise CliError(f"CA file {settings.ca} cannot be used: {_file_error(error)}", ExitStatus.USAGE) from error
    if settings.cert is not None:
        try:
            # The empty password stops OpenSSL from prompting on the terminal.
            context.load_cert_chain(settings.cert, settings.key, password="")
        except OSError as error:
            words = f"certificate {settings.cert} with key {settings.key or settings.cert} cannot be used"
            raise CliError(f"{words}: {_file_error(error)}", ExitStatus.USAGE) from error
    return context


def _file_error(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "it is not valid PEM, or certificate and key do not match"
    return error.strerror or str(error)
