"""The TLS handshake of one connection. A refused client gets the alert, or plain HTTP in answer to plain HTTP.

Trio raises before it sends the alert that OpenSSL has written, and closing a socket with unread data resets the
connection, which may cost the client what was sent last. So a refusal is sent here, and then the client is read until
it closes. Owns the reasons for the log; writes no line itself.
"""

from __future__ import annotations

import json
import re
import ssl
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.reasons import HTTPS_REQUIRED
from provisioner.tls.peer_certificate import handshake_observer

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.server.send_timeout import SendTimeoutStream

# Seconds and bytes to read from a refused client until it closes: it may still be sending its first request.
_LINGER = 2.0
_LINGER_BYTES = 256 * 1024
_CHUNK = 64 * 1024

CERTIFICATE_REFUSED = "client certificate refused"
HANDSHAKE_FAILED = "TLS handshake failed"
PLAIN_HTTP = "plain HTTP on the TLS port"

# How an HTTP request begins; "PRI" begins HTTP/2 without TLS.
_METHODS = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ", b"CONNECT ", b"TRACE ", b"PRI "]
_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([\x21-\x7e]{1,128})[ \t]*\r\n", re.IGNORECASE)
_SPEAK_HTTPS = {
    "error": "https required",
    "message": "this port speaks https; use an address that begins with https://",
    "code": 400,
    "reason": HTTPS_REQUIRED,
}
_NO_TLS = "the client does not speak TLS"
_DISCONNECTED = "the client disconnected"
# OpenSSL's names of reasons, which vary between its versions.
_REASONS = {
    "HTTP_REQUEST": _NO_TLS,
    "HTTPS_PROXY_REQUEST": _NO_TLS,
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "UNKNOWN_PROTOCOL": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "NO_SHARED_CIPHER": "the client offers no cipher suite that is allowed here",
    "UNSUPPORTED_PROTOCOL": "the client offers no TLS version that is allowed here (tls_minimum)",
    "UNEXPECTED_EOF_WHILE_READING": _DISCONNECTED,
}
# OpenSSL's numbers for the result of a certificate check (X509_V_ERR_...).
_REFUSED = {
    3: "client_crl has no revocation list of its CA",
    9: "it is not valid yet",
    10: "it has expired",
    12: "the revocation list of its CA has expired (client_crl)",
    **dict.fromkeys((2, 18, 19, 20, 21), "no CA in client_ca has signed it"),
    23: "it is revoked",
    26: "it is not made for clients",
}
# What a client's alert says of the server's certificate.
_ALERTS = {
    "UNKNOWN_CA": "the client does not trust the CA of this server's certificate",
    "BAD_CERTIFICATE": "the client refused this server's certificate, which may not be for the name it used",
    "CERTIFICATE_EXPIRED": "this server's certificate has expired for the client",
    "CERTIFICATE_UNKNOWN": "the client refused this server's certificate",
}
# OpenSSL's names of alerts begin with the version that introduced them.
_ALERT = re.compile(r"(?:SSL|TLS)(?:V\d+)?_ALERT_(\w+)")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a handshake failed. ``event`` is one of the constants above, ``answer`` the bytes that tell the client."""

    event: str
    reason: str
    answer: bytes = b""
    request_id: str | None = None


class _Observer:
    """Receives the result of the handshake from ``RecordingSSLObject``."""

    def __init__(self, on_certificate: Callable[[], None]) -> None:
        self.accepted = on_certificate
        self.error: ssl.SSLError | None = None
        self.alert = b""

    def failed(self, error: ssl.SSLError, alert: bytes) -> None:
        self.error, self.alert = error, alert


async def do_handshake(
    stream: trio.SSLStream[SendTimeoutStream], seconds: float, on_certificate: Callable[[], None]
) -> Refusal | None:
    """Do the handshake; return None if it succeeded, else the reason, which ``send_refusal`` sends to the client.

    ``on_certificate`` is called if the client's certificate is accepted. Raises trio.BrokenResourceError or
    trio.ClosedResourceError if the connection ends, or time runs out, before the client has sent anything.
    """
    observer = _Observer(on_certificate)
    handshake_observer.set(observer)
    transport = stream.transport_stream
    try:
        with trio.fail_after(seconds):
            await stream.do_handshake()
    except trio.TooSlowError:
        if not transport.head:
            raise trio.BrokenResourceError("the client sent nothing") from None
        return Refusal(HANDSHAKE_FAILED, f"not complete within {seconds:g} s")
    except trio.BrokenResourceError:
        if not transport.head:  # a probe of the port, such as a load balancer's
            raise
        return _refusal(transport.head, observer)
    transport.head = b""
    return None


async def send_refusal(stream: trio.SSLStream[SendTimeoutStream], refusal: Refusal) -> None:
    """Send the client the answer, and read until it closes, so that it receives all of it."""
    transport, left = stream.transport_stream, _LINGER_BYTES
    with trio.move_on_after(_LINGER), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        if refusal.answer:
            await transport.send_all(refusal.answer)
        await transport.send_eof()
        while left > 0 and (received := await transport.receive_some(_CHUNK)):
            left -= len(received)


def _refusal(head: bytes, observer: _Observer) -> Refusal:
    if any(head.startswith(method) or method.startswith(head) for method in _METHODS):
        given = _REQUEST_ID.search(head)
        request_id = given[1].decode("ascii") if given else str(uuid.uuid4())
        return Refusal(PLAIN_HTTP, _NO_TLS, _speak_https(head, request_id), request_id)
    if observer.error is None:
        return Refusal(HANDSHAKE_FAILED, _DISCONNECTED)
    return Refusal(*_explain(observer.error), observer.alert)


def _explain(error: ssl.SSLError) -> tuple[str, str]:
    """Return the event and the reason."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CERTIFICATE_REFUSED, _REFUSED.get(error.verify_code, error.verify_message)
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return CERTIFICATE_REFUSED, "the client sent no certificate, and one is required"
    if isinstance(error, ssl.SSLEOFError):
        return HANDSHAKE_FAILED, _DISCONNECTED
    if alert := _ALERT.fullmatch(reason):
        return HANDSHAKE_FAILED, _ALERTS.get(alert[1], f"the client ended the handshake: {_plain(alert[1])}")
    return HANDSHAKE_FAILED, _REASONS.get(reason, _plain(reason or str(error)))


def _plain(reason: str) -> str:
    """Return OpenSSL's name for a reason as words."""
    return reason.replace("_", " ").lower()


def _speak_https(head: bytes, request_id: str) -> bytes:
    """Return the answer to a plain HTTP request, in the API's form of errors."""
    body = json.dumps(_SPEAK_HTTPS).encode()
    lines = [
        "HTTP/1.1 400 Bad Request",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + (b"" if head.startswith(b"HEAD ") else body)
