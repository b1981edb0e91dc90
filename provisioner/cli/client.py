"""A client of the REST API: repeats lost requests, and tells results from errors."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from provisioner import __version__
from provisioner.cli.exit_status import CliError, ExitStatus, with_reason
from provisioner.cli.transport import Transport, UnreachableError
from provisioner.cli.transport_errors import CERT_SETTINGS, speaks_https
from provisioner.client import answers
from provisioner.client.errors import TEMPORARY
from provisioner.client.errors import ApiError as ErrorResponse
from provisioner.client.events import EventParser
from provisioner.client.requests import (
    ANSWER_TIMEOUT,
    CHANGE_TIMEOUT,
    EVENT_TIMEOUT,
    REPEAT_PAUSES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from provisioner.cli.client_settings import ClientSettings
    from provisioner.cli.transport import TlsContexts

# A cancel responds when the job is rolled back; the server has its own deadline for that.
CANCEL_TIMEOUT = CHANGE_TIMEOUT
# Seconds for each piece of an upload to be taken, and for the answer: the server reads no faster than its disk writes.
UPLOAD_TIMEOUT = 120.0
_JSON = {"Content-Type": "application/json"}


class ApiError(CliError):
    """An error response; ``message`` is the server's own. ``reason`` is its heading in docs/troubleshooting.md."""

    def __init__(self, message: str, code: int, reason: object = None) -> None:
        super().__init__(with_reason(message, reason), ExitStatus.REFUSED if code < 500 else ExitStatus.UNREACHABLE)
        self.code = code
        self.cause = message

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in TEMPORARY


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response: its unchanged text, and the decoded object."""

    text: str
    data: Mapping[str, Any]


class Client:
    """A client of one server, with one set of credentials.

    ``budget``: the seconds that each call may take with its repeats; None: as long as the time limits allow.
    ``contexts``: TLS contexts to share with clients of other servers, since each takes a megabyte.
    """

    def __init__(
        self, settings: ClientSettings, *, budget: float | None = None, contexts: TlsContexts | None = None
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._transport = Transport(settings, contexts)
        self._headers = {"Accept": "application/json", "User-Agent": f"lvp/{__version__}"}
        if settings.token is not None:
            self._headers["X-API-Token"] = settings.token

    def get(self, path: str, params: Mapping[str, str | int] | None = None) -> Answer:
        """Send GET; repeat it if the response is lost. Raises ApiError or UnreachableError."""
        return self._repeat("GET", f"{path}?{urlencode(params)}" if params else path)

    def events(self, path: str, beat: Callable[[], None] = lambda: None) -> Iterator[tuple[str, str]]:
        """Yield the kind and the data (JSON) of server-sent events, until the stream ends or breaks off.

        Yields nothing if the response is no such stream. Calls ``beat`` at each line, also of comments.
        """
        parser = EventParser()
        for line in self._transport.lines(path, {**self._headers, "Accept": "text/event-stream"}, EVENT_TIMEOUT):
            beat()
            if event := parser.feed(line):
                yield event.kind, event.text

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
        until = None if self._budget is None else time.monotonic() + self._budget
        for pause in REPEAT_PAUSES:
            try:
                return self._once(method, path, headers, body, _left(until))
            except UnreachableError as error:
                if not error.lost or (until is not None and time.monotonic() + pause >= until):
                    raise
            time.sleep(pause)
        return self._once(method, path, headers, body, _left(until))

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


def _left(until: float | None) -> float:
    """Return the seconds that a request may wait."""
    return ANSWER_TIMEOUT if until is None else min(ANSWER_TIMEOUT, max(0.1, until - time.monotonic()))


def read_answer(code: int, text: str, settings: ClientSettings) -> Answer:
    """Return the API's response.

    Raises ApiError for an error, or if another service answers, and UnreachableError if the server speaks https only.
    """
    url, data = settings.url, answers.decoded(text)
    if code == 400 and url.startswith("http://") and _asks_for_https(data, text):
        raise speaks_https(url)
    try:
        return Answer(text.rstrip("\n"), answers.read(url, code, text))
    except ErrorResponse as error:
        message = error.message
        if code == 401 and data is not None:
            message = f"{message}; {_credential_hint(settings, message)}"
        raise ApiError(message, error.status, error.reason) from error


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
