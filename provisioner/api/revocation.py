"""Certificates that are refused although they are sound. Owns what counts as revoked; who asks decides what follows.

OpenSSL refuses a listed certificate in the handshake. This is asked for each request, so that a connection that stood
already ends being good as soon as a new list is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from provisioner.api.peer_tls import PeerCertificate
    from provisioner.api.x509 import RevocationList


@dataclass(frozen=True, slots=True)
class Revoked:
    """By serial number, whoever issued it; by fingerprint; by an issuer's list."""

    serials: frozenset[int] = frozenset()
    fingerprints: frozenset[str] = frozenset()
    listed: frozenset[tuple[bytes, int]] = frozenset()

    def covers(self, certificate: PeerCertificate) -> bool:
        """Whether that certificate is revoked."""
        return (
            certificate.serial in self.serials
            or certificate.fingerprint in self.fingerprints
            or (certificate.issuer, certificate.serial) in self.listed
        )


def revoked(entries: Iterable[str], lists: Iterable[RevocationList]) -> Revoked:
    """What the config's entries (``serial:HEX``, ``sha256:HEX``; checked there) and revocation lists say together."""
    by_kind: dict[str, set[str]] = {"serial": set(), "sha256": set()}
    for entry in entries:
        kind, _, value = entry.partition(":")
        by_kind[kind].add(value.replace(":", "").lower())
    return Revoked(
        frozenset(int(serial, 16) for serial in by_kind["serial"]),
        frozenset(by_kind["sha256"]),
        frozenset((one.issuer, serial) for one in lists for serial in one.serials),
    )
