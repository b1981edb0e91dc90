"""The REST API from a client's side. Owns requests, repeats and what errors say; knows no command."""

from __future__ import annotations

import json
import ssl
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from provisioner.cli.exit_status import CliError, ExitStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from provisioner.cli.client_settings import ClientSettings

API = "/api/v1"
# Connecting is quick or hopeless; an answer may wait behind a busy disk.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 5.0, 30.0
# A cancel answers when the rollback has ended, and that has a deadline of its own on the server.
CANCEL_TIMEOUT = 600.0
# Repeats of a request whose answer was lost, and the pause before each.
REPEAT_PAUSES = (0.3, 1.0, 3.0)
# Passing states of the server or of a proxy before it.
_PASSING = {429, 502, 503, 504}


class ApiError(CliError):
    """The server answered with an error; ``message`` is the server's own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, ExitStatus.REFUSED if code < 500 else ExitStatus.UNREACHABLE)
        self.code = code

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in _PASSING


class UnreachableError(CliError):
    """No answer. ``lost``: the request may have arrived all the same. ``temporary``: trying again may help."""

    def __init__(self, message: str, *, lost: bool = False, temporary: bool = True) -> None:
        super().__init__(message, ExitStatus.UNREACHABLE)
        self.lost = lost
        self.temporary = temporary


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: its text unchanged, and the object in it."""

    text: str
    data: Mapping[str, Any]


class Client:
    """A connection to one server."""

    def __init__(self, settings: ClientSettings) -> None:
        self._url = settings.url
        headers = {"Accept": "application/json"}
        if settings.token is not None:
            headers["X-API-Token"] = settings.token
        self._http = httpx.Client(
            headers=headers,
            verify=tls_context(settings),
            timeout=httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
            trust_env=not settings.loopback,  # a proxy from the environment cannot reach our own loopback
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, params: Mapping[str, str | int] | None = None) -> Answer:
        """GET, repeated when the answer is lost. Raises ApiError or UnreachableError."""
        return self._repeat("GET", path, params=dict(params or {}))

    def delete(self, path: str) -> Answer:
        """DELETE, once: a repeat would find nothing and say so. Raises ApiError or UnreachableError."""
        return self._once("DELETE", path)

    def post(self, path: str, body: Mapping[str, object] | None = None, *, timeout: float | None = None) -> Answer:
        """POST, once. ``timeout`` in seconds for the answer. Raises ApiError or UnreachableError."""
        return self._once("POST", path, json=body, timeout=timeout)

    def submit(self, path: str, body: Mapping[str, object], idempotency_key: str) -> Answer:
        """POST, repeated when the answer is lost: the key makes the server take the repeats for one."""
        return self._repeat("POST", path, json=body, headers={"Idempotency-Key": idempotency_key})

    def _repeat(self, method: str, path: str, **request: Any) -> Answer:
        for pause in REPEAT_PAUSES:
            try:
                return self._once(method, path, **request)
            except UnreachableError as error:
                if not error.lost:
                    raise
            time.sleep(pause)
        return self._once(method, path, **request)

    def _once(self, method: str, path: str, *, timeout: float | None = None, **request: Any) -> Answer:
        if timeout is not None:
            request["timeout"] = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
        with spoken_transport_errors(self._url):
            response = self._http.request(method, self._url + path, **request)
        return read_answer(response.status_code, response.text, self._url)


def read_answer(code: int, text: str, url: str) -> Answer:
    """Tell an answer of the API from its errors, and both from something else that answers there."""
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ApiError(f"{url} does not answer like a libvirt-volume-provisioner (HTTP status {code})", max(code, 400))
    if code >= 400:
        raise ApiError(str(data.get("message") or f"the server answered with HTTP status {code}"), code)
    return Answer(text.rstrip("\n"), data)


@contextmanager
def spoken_transport_errors(url: str) -> Iterator[None]:
    """Turn the transport's errors into one sentence each."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise UnreachableError(f"{url} did not answer within {CONNECT_TIMEOUT:g} s") from error
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            words = f"the certificate of {url} is not trusted ({_reason(error)}); name its CA with --ca or LVP_CA"
            raise UnreachableError(words, temporary=False) from error
        raise UnreachableError(f"{url} cannot be reached: {_reason(error)}") from error
    except httpx.TimeoutException as error:
        raise UnreachableError(f"{url} took the request and did not answer in time", lost=True) from error
    except httpx.TransportError as error:
        if " alert " in str(error):  # TLS 1.3 tells of a refused or missing client certificate only after the handshake
            words = f"{url} refused the TLS connection ({_reason(error)}); name a certificate with --cert or LVP_CERT"
            raise UnreachableError(words, temporary=False) from error
        raise UnreachableError(f"the connection to {url} broke: {_reason(error)}", lost=True) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise UnreachableError(f"{url} is not an address to connect to: {error}", temporary=False) from error


def _reason(error: Exception) -> str:
    """The innermost exception's words without the numbers that C libraries put around them."""
    text = str(error)
    if "certificate verify failed: " in text:
        text = text.split("certificate verify failed: ")[1].split(" (_ssl", maxsplit=1)[0]
    return text.split("] ")[-1] or type(error).__name__


def tls_context(settings: ClientSettings) -> ssl.SSLContext | bool:
    """The system's CAs or the given one, and our own certificate. Raises CliError."""
    if not settings.url.startswith("https://"):
        return False  # nothing to verify, and loading the CAs takes longer than the request
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise CliError(f"CA file {settings.ca} cannot be used: {_ssl_words(error)}", ExitStatus.USAGE) from error
    if settings.cert is not None:
        try:
            # The empty password keeps OpenSSL from asking on the terminal.
            context.load_cert_chain(settings.cert, settings.key, password="")
        except (OSError, ssl.SSLError) as error:
            words = f"certificate {settings.cert} with key {settings.key or settings.cert} cannot be used"
            raise CliError(f"{words}: {_ssl_words(error)}", ExitStatus.USAGE) from error
    return context


def _ssl_words(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "it holds no such thing in PEM, or the two do not belong together"
    return error.strerror or str(error)
