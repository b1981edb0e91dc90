"""Carries the verified client certificate of a connection to the app, which hypercorn 0.18 does not.

Public hooks only: hypercorn's ``Config`` is made to be subclassed and asks it once for an SSL context;
``SSLContext.sslobject_class`` is the class that ``wrap_bio`` makes, which trio's TLS uses; and a task inherits the
context variables of the task that started it, so what a handshake sets is seen by that connection's requests and
by no other's.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog
from hypercorn.config import Config as HypercornConfig

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client certificate whose chain was verified. ``names``: common name first, then alternative names."""

    names: tuple[str, ...]
    serial: str


_peer: ContextVar[PeerCertificate | None] = ContextVar("peer_certificate", default=None)


def peer_certificate() -> PeerCertificate | None:
    """The certificate of the connection that the running request came over."""
    return _peer.get()


class _RecordingSSLObject(ssl.SSLObject):
    """Notes the peer's certificate when its handshake has ended well."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()  # raises SSLWantReadError until it has ended
        except ssl.SSLCertVerificationError as error:
            log.warning("client certificate refused", reason=error.verify_message)  # hypercorn says nothing
            raise
        if self.context.verify_mode is not ssl.CERT_NONE:
            _peer.set(_read(self.getpeercert() or {}))


def _read(certificate: dict[str, Any]) -> PeerCertificate | None:
    if not certificate:
        return None
    common = [value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName"]
    alternative = [value for _, value in certificate.get("subjectAltName", ())]
    return PeerCertificate(tuple(dict.fromkeys([*common, *alternative])), certificate.get("serialNumber", ""))


class MutualTlsConfig(HypercornConfig):
    """Hypercorn's config, with connections that remember their client."""

    client_certificate_required = False

    def create_ssl_context(self) -> ssl.SSLContext | None:
        context = super().create_ssl_context()
        if context is None:
            return None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca_certs:
            context.verify_mode = ssl.CERT_REQUIRED if self.client_certificate_required else ssl.CERT_OPTIONAL
        context.sslobject_class = _RecordingSSLObject
        # Every connection proves itself anew: a resumed TLS 1.3 session would carry no certificate.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        return context
