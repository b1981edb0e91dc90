"""Revocation of client certificates: which are revoked, and whether their revocation list has expired.

OpenSSL applies the lists in the handshake. Here they are applied to each request, so that requests on an open
connection are refused as soon as a new list revokes its certificate or the list in force expires.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from provisioner.tls.certificates import RevocationList
    from provisioner.tls.peer_certificate import PeerCertificate


@dataclass(frozen=True, slots=True)
class Revoked:
    """Revoked certificates: by serial number of any issuer, by fingerprint, and by an issuer's list.

    ``list_ends``: when the last list of each issuer expires, in seconds since the epoch.
    """

    serials: frozenset[int] = frozenset()
    fingerprints: frozenset[str] = frozenset()
    listed: frozenset[tuple[bytes, int]] = frozenset()
    list_ends: Mapping[bytes, float] = field(default_factory=dict)

    def covers(self, certificate: PeerCertificate) -> bool:
        """Return whether the certificate is revoked."""
        return (
            certificate.serial in self.serials
            or certificate.fingerprint in self.fingerprints
            or (certificate.issuer, certificate.serial) in self.listed
        )

    def is_outdated(self, certificate: PeerCertificate, now: float) -> bool:
        """Return whether every list of the certificate's issuer has expired, as OpenSSL would decide.

        If no list matches the issuer, since its name is encoded differently there, the list that expires last decides.
        """
        if not self.list_ends:
            return False
        return self.list_ends.get(certificate.issuer, max(self.list_ends.values())) <= now


def revoked(entries: Iterable[str], lists: Iterable[RevocationList]) -> Revoked:
    """Return what the configuration's entries (``serial:HEX``, ``sha256:HEX``; checked there) and the lists revoke."""
    by_kind: dict[str, set[str]] = {"serial": set(), "sha256": set()}
    for entry in entries:
        kind, _, value = entry.partition(":")
        by_kind[kind].add(value.replace(":", "").lower())
    ends: dict[bytes, float] = {}
    lists = list(lists)
    for one in lists:
        end = math.inf if one.next_update is None else one.next_update
        ends[one.issuer] = max(end, ends.get(one.issuer, -math.inf))
    return Revoked(
        frozenset(int(serial, 16) for serial in by_kind["serial"]),
        frozenset(by_kind["sha256"]),
        frozenset((one.issuer, serial) for one in lists for serial in one.serials),
        ends,
    )
