"""Passes a connection's verified client certificate to the app, which hypercorn does not (``hypercorn_quirks``, 6).

Public hooks only: ``SSLContext.sslobject_class`` is the class that ``wrap_bio`` makes, which trio's TLS uses; and a
task inherits the context variables of the task that started it, so what a handshake sets is seen by the requests of
that connection and by no others. ``wrap_bio`` also gets the buffer for outgoing bytes, where the alert of a failed
handshake is: trio raises without sending it.
"""

from __future__ import annotations

import hashlib
import math
import ssl
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from provisioner.tls import certificates

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client certificate whose chain was verified. ``names``: the common name, then the alternative names.

    ``issuer`` is the name as encoded, ``fingerprint`` SHA-256 in hex, ``not_after`` seconds since the epoch.
    """

    names: tuple[str, ...]
    serial: int = 0
    issuer: bytes = b""
    fingerprint: str = ""
    not_after: float = math.inf


class HandshakeObserver(Protocol):
    """A receiver of the result of a handshake."""

    @property
    def accepted(self) -> Callable[[], None]:
        """Called if the client presented a certificate, and it was verified."""

    def failed(self, error: ssl.SSLError, alert: bytes) -> None:
        """The handshake failed. ``alert``: the bytes to send to the client, which say why."""


_peer: ContextVar[PeerCertificate | None] = ContextVar("peer_certificate", default=None)
# Set for each connection before its handshake.
handshake_observer: ContextVar[HandshakeObserver | None] = ContextVar("handshake_observer", default=None)


def peer_certificate() -> PeerCertificate | None:
    """Return the client certificate of the current request's connection."""
    return _peer.get()


class RecordingSSLObject(ssl.SSLObject):
    """An SSLObject that records the peer's certificate if its handshake succeeds, and the alert if it fails."""

    outgoing: ssl.MemoryBIO | None = None

    def do_handshake(self) -> None:
        observer = handshake_observer.get()
        try:
            super().do_handshake()  # raises SSLWantReadError until it is complete
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if observer is not None:
                observer.failed(error, self.outgoing.read() if self.outgoing is not None else b"")
            raise
        if self.context.verify_mode is not ssl.CERT_NONE:
            certificate = _read(self.getpeercert() or {}, self.getpeercert(binary_form=True))
            _peer.set(certificate)
            if certificate is not None and observer is not None:
                observer.accepted()


class RecordingContext(ssl.SSLContext):
    """An SSLContext whose connections are RecordingSSLObjects."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(made, RecordingSSLObject)
        made.outgoing = outgoing
        return made


def _read(certificate: dict[str, Any], der: bytes | None) -> PeerCertificate | None:
    if not certificate or not der:
        return None
    common = [value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName"]
    alternative = [value for _, value in certificate.get("subjectAltName", ()) if isinstance(value, str)]
    facts = certificates.certificate(der)
    return PeerCertificate(
        tuple(dict.fromkeys([*common, *alternative])),
        facts.serial,
        facts.issuer,
        hashlib.sha256(der).hexdigest(),
        facts.not_after,
    )
