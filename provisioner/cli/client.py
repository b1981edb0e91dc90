"""The REST API from a client's side. Owns repeats and what answers mean; knows no command."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from provisioner import __version__
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.transport import Transport, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.cli.client_settings import ClientSettings

# An answer may wait behind a busy disk; seconds.
ANSWER_TIMEOUT = 30.0
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: its text unchanged, and the object in it."""

    text: str
    data: Mapping[str, Any]


class Client:
    """One server's API, called as one client."""

    def __init__(self, settings: ClientSettings) -> None:
        self._url = settings.url
        self._transport = Transport(settings)
        self._headers = {"Accept": "application/json", "User-Agent": f"lvp/{__version__}"}
        if settings.token is not None:
            self._headers["X-API-Token"] = settings.token

    def get(self, path: str, params: Mapping[str, str | int] | None = None) -> Answer:
        """GET, repeated when the answer is lost. Raises ApiError or UnreachableError."""
        return self._repeat("GET", f"{path}?{urlencode(params)}" if params else path)

    def delete(self, path: str) -> Answer:
        """DELETE, once: a repeat would find nothing and say so. Raises ApiError or UnreachableError."""
        return self._once("DELETE", path)

    def put(self, path: str) -> Answer:
        """PUT, repeated when the answer is lost. Raises ApiError or UnreachableError."""
        return self._repeat("PUT", path)

    def post(self, path: str, *, limit: float = ANSWER_TIMEOUT) -> Answer:
        """POST, once. ``limit`` in seconds for the answer. Raises ApiError or UnreachableError."""
        return self._once("POST", path, limit=limit)

    def submit(self, path: str, body: Mapping[str, object], idempotency_key: str) -> Answer:
        """POST, repeated when the answer is lost: the key makes the server take the repeats for one."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
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
        return read_answer(*self._transport.send(method, path, sent, body or None, limit), self._url)


def read_answer(code: int, text: str, url: str) -> Answer:
    """Tell an answer of the API from its errors, and both from something else that answers there."""
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if code in _PASSING and not isinstance(data, dict):  # a proxy whose server is away
        raise ApiError(f"{url} is not available (HTTP status {code})", code)
    if not isinstance(data, dict) or 300 <= code < 400:
        raise ApiError(f"{url} does not answer like a libvirt-volume-provisioner (HTTP status {code})", max(code, 400))
    if code >= 400:
        raise ApiError(str(data.get("message") or f"the server answered with HTTP status {code}"), code)
    return Answer(text.rstrip("\n"), data)
