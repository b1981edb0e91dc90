"""HTTP requests to the server: TLS, proxies, time limits and error messages.

Uses only the standard library: importing httpx, which the daemon uses for downloads, takes 0.5 s of processor time, ten
times as long as the request itself.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from provisioner.cli.exit_status import CliError, ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from provisioner.cli.client_settings import ClientSettings

# Seconds; a connection is made quickly or not at all.
CONNECT_TIMEOUT = 5.0


class UnreachableError(CliError):
    """No response. ``lost``: the request may have arrived. ``temporary``: a retry may succeed."""

    def __init__(self, message: str, *, lost: bool = False, temporary: bool = True) -> None:
        super().__init__(message, ExitStatus.UNREACHABLE)
        self.lost = lost
        self.temporary = temporary


class Transport:
    """HTTP transport to one server."""

    def __init__(self, settings: ClientSettings) -> None:
        self._url = settings.url
        self._opener = urllib.request.build_opener(
            # A proxy from the environment cannot reach this machine's loopback.
            urllib.request.ProxyHandler({} if settings.loopback else None),
            _PlainHandler(),
            _TlsHandler(context=tls_context(settings)),
            _NoRedirects(),
        )
        self._opener.addheaders = []

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, limit: float
    ) -> tuple[int, str]:
        """Return the response's status and text, for any status. Waits ``limit`` seconds. Raises CliError."""
        with transport_errors(self._url):
            request = urllib.request.Request(  # noqa: S310 - the scheme is http or https, see ``check_url``
                self._url + path, body, dict(headers), method=method
            )
            try:
                with self._opener.open(request, timeout=limit) as response:
                    return response.status, response.read().decode(errors="replace")
            except HTTPError as error:
                with error:
                    return error.code, error.read().decode(errors="replace")


class _PlainConnection(http.client.HTTPConnection):
    """A connection with a separate connect timeout; the standard library has one timeout for everything."""

    def connect(self) -> None:
        answer_limit, self.timeout = self.timeout, CONNECT_TIMEOUT
        super().connect()
        self.sock.settimeout(answer_limit)


class _TlsConnection(_PlainConnection, http.client.HTTPSConnection):
    """The same with TLS: ``super()`` above is then ``HTTPSConnection``."""


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PlainConnection, request)


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


@contextmanager
def transport_errors(url: str) -> Iterator[None]:
    """Turn exceptions of the standard library into CliError."""
    try:
        yield
    except URLError as error:  # while connecting or sending
        raise _connecting(url, error.reason) from error
    except TimeoutError as error:
        raise UnreachableError(f"{url} did not answer the request in time", lost=True) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, ssl.SSLError):
            raise _refused(url, error) from error
        raise UnreachableError(f"the connection to {url} broke: {_reason(error)}", lost=True) from error
    except ValueError as error:  # an invalid header or host name
        raise CliError(f"the request to {url} cannot be made: {error}", ExitStatus.USAGE) from error


def _connecting(url: str, reason: str | BaseException) -> UnreachableError:
    if isinstance(reason, ssl.SSLCertVerificationError):
        words = f"the certificate of {url} is not trusted ({reason.verify_message}); name its CA with --ca or LVP_CA"
        return UnreachableError(words, temporary=False)
    if isinstance(reason, ssl.SSLError):
        return _refused(url, reason)
    if isinstance(reason, TimeoutError):
        return UnreachableError(f"{url} did not answer within {CONNECT_TIMEOUT:g} s")
    lost = isinstance(reason, BrokenPipeError | ConnectionResetError)
    return UnreachableError(f"{url} cannot be reached: {_reason(reason)}", lost=lost)


def _refused(url: str, error: ssl.SSLError) -> UnreachableError:
    """Return the error for a TLS alert; with TLS 1.3 a missing client certificate is reported after the handshake."""
    hint = "; name a certificate with --cert or LVP_CERT" if "CERTIFICATE" in (error.reason or "") else ""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    return UnreachableError(f"no TLS connection to {url}: {reason}{hint}", temporary=False)


def _reason(error: str | BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


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
