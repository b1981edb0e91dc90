"""Carries the verified client certificate of a connection to the app, which hypercorn 0.18 does not.

Public hooks only: hypercorn's ``Config`` is made to be subclassed and asks it once for an SSL context;
``SSLContext.sslobject_class`` is the class that ``wrap_bio`` makes, which trio's TLS uses; and a task inherits the
context variables of the task that started it, so what a handshake sets is seen by that connection's requests and
by no other's.
"""

from __future__ import annotations

import hashlib
import math
import ssl
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from hypercorn.config import Config as HypercornConfig

from provisioner.api import x509

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client certificate whose chain was verified. ``names``: common name first, then alternative names.

    ``issuer`` is the name as encoded, ``fingerprint`` SHA-256 in hex, ``not_after`` seconds since the epoch.
    """

    names: tuple[str, ...]
    serial: int = 0
    issuer: bytes = b""
    fingerprint: str = ""
    not_after: float = math.inf


_peer: ContextVar[PeerCertificate | None] = ContextVar("peer_certificate", default=None)
# Set for each connection before its handshake; hears why its certificate was refused.
refusal: ContextVar[Callable[[str], None] | None] = ContextVar("refusal", default=None)


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
            if (tell := refusal.get()) is not None:
                tell(error.verify_message)
            raise
        if self.context.verify_mode is not ssl.CERT_NONE:
            _peer.set(_read(self.getpeercert() or {}, self.getpeercert(binary_form=True)))


def _read(certificate: dict[str, Any], der: bytes | None) -> PeerCertificate | None:
    if not certificate or not der:
        return None
    common = [value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName"]
    alternative = [value for _, value in certificate.get("subjectAltName", ()) if isinstance(value, str)]
    facts = x509.certificate(der)
    return PeerCertificate(
        tuple(dict.fromkeys([*common, *alternative])),
        facts.serial,
        facts.issuer,
        hashlib.sha256(der).hexdigest(),
        facts.not_after,
    )


class MutualTlsConfig(HypercornConfig):
    """Hypercorn's config, with connections that remember their client."""

    client_certificate_required = False
    tls_minimum = ssl.TLSVersion.TLSv1_3
    client_crl: str | None = None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        context = super().create_ssl_context()
        if context is None:
            return None
        context.minimum_version = self.tls_minimum
        if self.ca_certs:
            context.verify_mode = ssl.CERT_REQUIRED if self.client_certificate_required else ssl.CERT_OPTIONAL
        if self.client_crl:
            context.load_verify_locations(self.client_crl)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        context.sslobject_class = _RecordingSSLObject
        # Every connection proves itself anew: a resumed TLS 1.3 session would carry no certificate.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        return context
