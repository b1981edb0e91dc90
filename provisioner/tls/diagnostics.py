"""Checks the certificates, keys and revocation lists that a configuration names, each for itself. Changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.config import unreadable
from provisioner.contracts import Finding
from provisioner.contracts.errors import ConfigError
from provisioner.contracts.small_file import read_small
from provisioner.tls import certificates
from provisioner.tls.context import TlsContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509

    from provisioner.config import ServerSettings
    from provisioner.contracts import TransportSettings

# What was found, by the key that names the file.
Findings = dict[str, Finding]


def check_server(server: ServerSettings, now: float) -> Findings:
    """Return the findings about the TLS files of ``[server]``; ``now`` is in seconds since the epoch."""
    found: Findings = {}
    if server.tls_certificate is not None:
        found["tls_certificate"] = _read(server.tls_certificate, lambda pem: _certificate(pem, now))
    if server.tls_key is not None and server.tls_certificate is not None:
        found["tls_key"] = _check_key(server.tls_key, server.tls_certificate)
    if server.client_ca is not None:
        found["client_ca"] = _read(server.client_ca, lambda pem: _authorities(pem, now))
    if server.client_crl is not None:
        found["client_crl"] = _read(server.client_crl, lambda pem: _revocation_lists(pem, now))
    if found and all(finding.ok for finding in found.values()):
        try:
            TlsContext(server).load()
        except ConfigError as error:  # such as a key that OpenSSL finds too short
            found["tls_certificate"] = Finding(False, error.message, "replace it")
    return found


def check_client(settings: TransportSettings, now: float) -> Findings:
    """Return the findings about the TLS files of a source."""
    found: Findings = {}
    if settings.ca_file is not None:
        found["ca_file"] = _read(settings.ca_file, lambda pem: _authorities(pem, now))
    if settings.client_certificate is not None:
        found["client_certificate"] = _read(settings.client_certificate, lambda pem: _certificate(pem, now))
        key = settings.client_key or settings.client_certificate
        found["client_key" if settings.client_key else "client_certificate's key"] = _check_key(
            key, settings.client_certificate
        )
    return found


def _read(path: str, check: Callable[[bytes], str]) -> Finding:
    """Return the finding about one file; ``check`` returns what it holds and raises ValueError for what is wrong."""
    try:
        return Finding(True, f"{path} {check(read_small(Path(path)))}")
    except OSError as error:
        return unreadable(path, error)
    except ValueError as error:
        return Finding(False, f"{path} {error}", "replace it")


def _certificate(pem: bytes, now: float) -> str:
    own = _load(pem)[0]
    if own.not_valid_before_utc.timestamp() > now:
        raise ValueError(f"is not valid before {_day(own.not_valid_before_utc.timestamp())}")
    return _valid_until(own.not_valid_after_utc.timestamp(), now)


def _authorities(pem: bytes, now: float) -> str:
    """Check a file of CAs: one of several may have expired, all must not."""
    if b"PRIVATE KEY-----" in pem:
        raise ValueError("contains a private key; it must contain only the CA's certificate")
    return _valid_until(max(one.not_valid_after_utc.timestamp() for one in _load(pem)), now)


def _revocation_lists(pem: bytes, now: float) -> str:
    try:
        lists = certificates.revocation_lists(pem)
    except ValueError as error:
        raise ValueError("contains a malformed revocation list") from error
    if not lists:
        raise ValueError("contains no revocation list (PEM)")
    ends = [one.next_update for one in lists if one.next_update is not None]
    return _valid_until(min(ends), now) if ends else "does not expire"


def _check_key(key: str, certificate: str) -> Finding:
    """Return the finding about a key, and whether it belongs to the certificate."""

    def check(pem: bytes) -> str:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        if b"PRIVATE KEY-----" not in pem:
            kind = "contains a certificate, but no private key" if b"BEGIN CERTIFICATE" in pem else "is no private key"
            raise ValueError(f"{kind} (PEM)")
        try:
            loaded = load_pem_private_key(pem, None)
        except TypeError as error:
            raise ValueError("is encrypted, and the service has no passphrase for it") from error
        except Exception as error:  # cryptography also raises its own types for algorithms it does not know
            raise ValueError("contains a private key that cannot be used") from error
        try:
            owner = _load(read_small(Path(certificate)))[0]
        except (OSError, ValueError):
            return "is a private key"  # the certificate has a finding of its own
        if loaded.public_key() != owner.public_key():
            raise ValueError(f"is not the key of {certificate}")
        return f"is the key of {certificate}"

    return _read(key, check)


def _load(pem: bytes) -> list[x509.Certificate]:
    from cryptography import x509

    if b"BEGIN CERTIFICATE" not in pem:
        kind = "contains a private key, but no certificate" if b"PRIVATE KEY-----" in pem else "is no certificate"
        raise ValueError(f"{kind} (PEM)")
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ValueError("contains a malformed certificate") from error


def _valid_until(end: float, now: float) -> str:
    if end <= now:
        raise ValueError(f"expired on {_day(end)}")
    return f"is valid until {_day(end)}"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
