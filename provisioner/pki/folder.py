"""The folder of the authority: which file is where, and what is made, kept or refused.

``ca.pem`` and ``ca.key``, and below ``servers`` and ``clients`` a pair for each certificate. A key is made once and
kept: only ``force`` replaces it. A certificate without its key is normal, since keys move to the machines they are for.
"""

from __future__ import annotations

import ipaddress
import re
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ConfigError, InvalidRequestError
from provisioner.contracts.small_file import read_small
from provisioner.pki import certificates
from provisioner.pki.certificates import Authority, Use
from provisioner.pki.files import write_certificate, write_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    Issue = Callable[[EllipticCurvePrivateKey], x509.Certificate]

_DNS_NAME = re.compile(
    r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
# Also the name of a file, and 64 characters at most: the limit of X.509.
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate in the folder. ``new``: made by this call. ``trusted``: signed by the folder's present CA."""

    use: Use
    names: tuple[str, ...]
    certificate: Path
    key: Path
    not_after: datetime
    serial: int
    new: bool = False
    trusted: bool = True

    @property
    def expired(self) -> bool:
        """Whether its validity has ended."""
        return self.not_after <= datetime.now(UTC)


class PkiFolder:
    """One authority in the folder ``path``. Methods raise ConfigError, InvalidRequestError or OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def ca_certificate(self) -> Path:
        """The CA's certificate, which servers and clients need."""
        return self.path / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The CA's key, which only ``lvp pki`` needs."""
        return self.path / "ca.key"

    def init(self, name: str, days: int, *, force: bool = False) -> Issued:
        """Return the authority; make it if there is none, or with ``force``."""

        def check(found: x509.Certificate) -> None:
            if _has_expired(found):
                raise ConfigError(f"the CA in {self.path} expired on {_day(found)}; add --force to make a new one")

        return self._ensure(
            self.ca_certificate, lambda key: certificates.make_root(key, name, days), check, force=force
        )

    def server(self, names: tuple[str, ...], days: int, *, force: bool = False) -> Issued:
        """Return the server certificate for these DNS names and addresses; make it if there is none."""
        names = tuple(dict.fromkeys(map(_server_name, names)))
        authority = self._authority()
        file = self.path / "servers" / f"{_file_name(names[0])}.pem"

        def check(found: x509.Certificate) -> None:
            there = certificates.names_of(found)
            if set(there) != set(names):
                raise ConfigError(f"{file} is for {', '.join(there)}; add --force to replace it and its key")
            _check_valid(found, file, authority)

        return self._ensure(file, lambda key: authority.issue_server(key.public_key(), names, days), check, force=force)

    def client(self, name: str, days: int, *, force: bool = False) -> Issued:
        """Return the client certificate of this name; make it if there is none."""
        if not _CLIENT_NAME.fullmatch(name):
            raise InvalidRequestError(
                f"{name!r} cannot name a client; use up to 64 letters, digits and the characters . _ @ -"
            )
        authority = self._authority()
        file = self.path / "clients" / f"{name}.pem"
        return self._ensure(
            file,
            lambda key: authority.issue_client(key.public_key(), name, days),
            lambda found: _check_valid(found, file, authority),
            force=force,
        )

    def list(self) -> list[Issued]:
        """Return the CA, then the servers' and the clients' certificates, sorted by file name."""
        if not self.ca_certificate.exists():
            raise ConfigError(f"there is no CA in {self.path}; make one with lvp pki init")
        root = certificates.read_certificate(read_small(self.ca_certificate), str(self.ca_certificate))
        files = [file for kind in ("servers", "clients") for file in sorted((self.path / kind).glob("*.pem"))]
        found = [(file, certificates.read_certificate(read_small(file), str(file))) for file in files]
        return [
            _issued(self.ca_certificate, root),
            *(replace(_issued(file, one), trusted=certificates.is_issued_by(one, root)) for file, one in found),
        ]

    def _authority(self) -> Authority:
        if not self.ca_certificate.exists():
            raise ConfigError(f"there is no CA in {self.path}; make one with lvp pki init")
        if not self.ca_key.exists():
            raise ConfigError(f"the CA's key {self.ca_key} is missing; put it back, or run lvp pki init --force")
        certificate = certificates.read_certificate(read_small(self.ca_certificate), str(self.ca_certificate))
        key = _read_key(self.ca_key)
        if not certificates.matches(certificate, key):
            raise ConfigError(f"{self.ca_key} is not the key of {self.ca_certificate}; run lvp pki init")
        if _has_expired(certificate):
            raise ConfigError(f"the CA expired on {_day(certificate)}; make a new one with lvp pki init --force")
        return Authority(certificate, key)

    def _ensure(self, file: Path, issue: Issue, check: Callable[[x509.Certificate], None], *, force: bool) -> Issued:
        """Return the certificate in ``file``; make it, and its key, if they are missing or with ``force``.

        A key without a certificate, or with another one's, is what an interrupted call left: it gets a certificate.
        """
        key_file = file.with_suffix(".key")
        key = _read_key(key_file) if key_file.exists() and not force else None
        if file.exists() and not force:
            found = certificates.read_certificate(read_small(file), str(file))
            if key is None or certificates.matches(found, key):
                check(found)
                return _issued(file, found)
        if key is None:
            key = certificates.new_key()
            write_key(key_file, certificates.key_pem(key), overwrite=force)
        made = issue(key)
        write_certificate(file, certificates.certificate_pem(made))
        return replace(_issued(file, made), new=True)


def _issued(file: Path, certificate: x509.Certificate) -> Issued:
    return Issued(
        certificates.use_of(certificate),
        certificates.names_of(certificate),
        file,
        file.with_suffix(".key"),
        certificate.not_valid_after_utc,
        certificate.serial_number,
    )


def _check_valid(found: x509.Certificate, file: Path, authority: Authority) -> None:
    """Raise ConfigError if a certificate that is there already is of no use any more."""
    if _has_expired(found):
        raise ConfigError(f"{file} expired on {_day(found)}; add --force to replace it and its key")
    if not certificates.is_issued_by(found, authority.certificate):
        raise ConfigError(f"{file} is not signed by the present CA; add --force to replace it and its key")


def _has_expired(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc <= datetime.now(UTC)


def _day(certificate: x509.Certificate) -> str:
    return certificate.not_valid_after_utc.strftime("%Y-%m-%d")


def _read_key(file: Path) -> EllipticCurvePrivateKey:
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ConfigError(f"others can access the key {file}; run chmod 600 {file}")
    return certificates.read_key(read_small(file), str(file))


def _server_name(name: str) -> str:
    """Return the DNS name or address in the form that certificates have. Raises InvalidRequestError."""
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    if len(name) > 253 or not _DNS_NAME.fullmatch(name):
        raise InvalidRequestError(f"{name!r} is neither a DNS name nor an IP address, such as kvm-7.example.org")
    return name.lower()


def _file_name(name: str) -> str:
    return name.replace("*", "_").replace(":", "_")
