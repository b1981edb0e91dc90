"""A client of the REST API: repeats lost requests, and tells results from errors."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from provisioner import __version__
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.transport import Transport, UnreachableError
from provisioner.cli.transport_errors import CERT_SETTINGS, speaks_https

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from provisioner.cli.client_settings import ClientSettings

# Seconds; a busy disk may delay the response.
ANSWER_TIMEOUT = 30.0
# A cancel responds when the job is rolled back; the server has its own deadline for that.
CANCEL_TIMEOUT = 600.0
# The server zeroes the new part before it responds: a disk of 500 MB/s takes half an hour for 1 TiB.
RESIZE_TIMEOUT = 3600.0
# Seconds for each piece of an upload to be taken, and for the answer: the server reads no faster than its disk writes.
UPLOAD_TIMEOUT = 120.0
# Seconds without an event or a comment, of which the server sends one every 15 s.
EVENT_TIMEOUT = 20.0
# Seconds before each repeat of a request whose response was lost.
REPEAT_PAUSES = (0.3, 1.0, 3.0)
# Temporary states of the server, or of a proxy in front of it.
_PASSING = {429, 502, 503, 504}
_JSON = {"Content-Type": "application/json"}


class ApiError(CliError):
    """An error response; ``message`` is the server's own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, ExitStatus.REFUSED if code < 500 else ExitStatus.UNREACHABLE)
        self.code = code

    @property
    def cause(self) -> str:
        """The message; like ``UnreachableError.cause``, without a hint."""
        return self.message

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in _PASSING


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response: its unchanged text, and the decoded object."""

    text: str
    data: Mapping[str, Any]


class Client:
    """A client of one server, with one set of credentials."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._transport = Transport(settings)
        self._headers = {"Accept": "application/json", "User-Agent": f"lvp/{__version__}"}
        if settings.token is not None:
            self._headers["X-API-Token"] = settings.token

    def get(self, path: str, params: Mapping[str, str | int] | None = None) -> Answer:
        """Send GET; repeat it if the response is lost. Raises ApiError or UnreachableError."""
        return self._repeat("GET", f"{path}?{urlencode(params)}" if params else path)

    def events(self, path: str) -> Iterator[tuple[str, str]]:
        """Yield the kind and the data (JSON) of server-sent events, until the stream ends or breaks off.

        Yields nothing if the response is no such stream.
        """
        kind, data = "", ""
        for line in self._transport.lines(path, {**self._headers, "Accept": "text/event-stream"}, EVENT_TIMEOUT):
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                data = value
            elif not line and data:
                yield kind, data
                kind, data = "", ""

    def delete(self, path: str, params: Mapping[str, str] | None = None, *, limit: float = ANSWER_TIMEOUT) -> Answer:
        """Send DELETE once: a repeat would answer that nothing is there. Raises ApiError or UnreachableError."""
        return self._once("DELETE", f"{path}?{urlencode(params)}" if params else path, limit=limit)

    def put(self, path: str) -> Answer:
        """Send PUT; repeat it if the response is lost. Raises ApiError or UnreachableError."""
        return self._repeat("PUT", path)

    def upload(self, path: str, params: Mapping[str, str], part: str, body: Iterable[bytes], length: int) -> Answer:
        """Send a part of a file with PUT, once; ``part`` is its Content-Range. Raises ApiError or UnreachableError."""
        headers = {"Content-Range": part, "Content-Type": "application/octet-stream", "Content-Length": str(length)}
        sent = {**self._headers, **headers}
        found = self._transport.send("PUT", f"{path}?{urlencode(params)}", sent, body, UPLOAD_TIMEOUT)
        return read_answer(*found, self._settings)

    def post(self, path: str, body: Mapping[str, object] | None = None, *, limit: float = ANSWER_TIMEOUT) -> Answer:
        """Send POST once; wait ``limit`` seconds for the response. Raises ApiError or UnreachableError."""
        if body is None:
            return self._once("POST", path, limit=limit)
        return self._once("POST", path, _JSON, json.dumps(body).encode(), limit)

    def submit(self, path: str, body: Mapping[str, object], idempotency_key: str) -> Answer:
        """Send POST; repeat it if the response is lost. The key makes the server treat repeats as one request."""
        headers = {**_JSON, "Idempotency-Key": idempotency_key}
        return self._repeat("POST", path, headers, json.dumps(body).encode())

    def _repeat(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        for pause in REPEAT_PAUSES:
            try:
                return self._once(method, path, headers, body)
            except UnreachableError as error:
                if not error.lost:
                    raise
            time.sleep(pause)
        return self._once(method, path, headers, body)

    def _once(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        limit: float = ANSWER_TIMEOUT,
    ) -> Answer:
        sent = {**self._headers, **(headers or {})}
        return read_answer(*self._transport.send(method, path, sent, body or None, limit), self._settings)


def read_answer(code: int, text: str, settings: ClientSettings) -> Answer:
    """Return the API's response.

    Raises ApiError for an error, or if another service answers, and UnreachableError if the server speaks https only.
    """
    url = settings.url
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if code in _PASSING and not isinstance(data, dict):  # a proxy without its server
        raise ApiError(f"{url} is not available (HTTP status {code})", code)
    if code == 400 and url.startswith("http://") and _asks_for_https(data, text):
        raise speaks_https(url)
    if not isinstance(data, dict) or 300 <= code < 400:
        raise ApiError(f"{url} does not answer like a libvirt-volume-provisioner (HTTP status {code})", max(code, 400))
    if code >= 400:
        message = str(data.get("message") or f"the server answered with HTTP status {code}")
        raise ApiError(f"{message}; {_credential_hint(settings, message)}" if code == 401 else message, code)
    return Answer(text.rstrip("\n"), data)


def _asks_for_https(data: object, text: str) -> bool:
    """Return whether a TLS port answers plain HTTP: this service's, or another server's in its own words."""
    if isinstance(data, dict):
        return data.get("error") == "https required"
    return "https" in text.lower()


def _credential_hint(settings: ClientSettings, message: str) -> str:
    """Return what to do if the server does not accept the credential, as its message says."""
    if "revocation list" in message:
        return "renew it on the server (client_crl)"
    if message.startswith("the client certificate") and "role" not in message:  # revoked, or expired meanwhile
        return f"name another with {CERT_SETTINGS}"
    if settings.token is not None:
        return "give another token with --token-file, LVP_TOKEN_FILE or token_file in lvp.toml"
    if settings.cert is None:
        return f"give a token with --token-file or LVP_TOKEN_FILE, or a certificate with {CERT_SETTINGS}"
    if settings.url.startswith("http://"):
        return "the client certificate was not sent, since the server's address does not begin with https://"
    return "the server must have client_ca, and a role for this certificate in [auth.certificates]"
