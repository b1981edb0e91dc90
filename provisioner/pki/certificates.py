"""Makes keys and certificates in memory: a root with path length 0, and certificates for servers and clients.

EC P-256, since every TLS library supports it and its handshakes are cheap. The extensions satisfy OpenSSL's strict
checks (``X509_STRICT``), which Python 3.13 turns on. Reads and writes no files.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from provisioner.contracts.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

Use = Literal["CA", "server", "client"]

# A new certificate must work on a machine whose clock is slow.
_CLOCK_SKEW = timedelta(hours=1)


def new_key() -> EllipticCurvePrivateKey:
    """Return a new private key."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return the key as unencrypted PEM: the server reads it without a person at hand."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(pem: bytes, name: str) -> EllipticCurvePrivateKey:
    """Return the private key in ``pem``. Raises ConfigError, which names the file ``name``."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{name} is not an unencrypted private key in PEM") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(f"{name} is not an EC key, so lvp pki has not made it")
    return key


def read_certificate(pem: bytes, name: str) -> x509.Certificate:
    """Return the first certificate in ``pem``. Raises ConfigError, which names the file ``name``."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError(f"{name} is not a certificate in PEM") from error


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def matches(certificate: x509.Certificate, key: EllipticCurvePrivateKey) -> bool:
    """Return whether the certificate is for this key."""
    return certificate.public_key() == key.public_key()


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether ``issuer`` signed the certificate."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def use_of(certificate: x509.Certificate) -> Use:
    """Return what the certificate is for. One of another CA may be for both uses; it counts as a server's."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "CA"
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "server"
    return "server" if ExtendedKeyUsageOID.SERVER_AUTH in usage else "client"


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names and addresses, or the common name if there are none."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return tuple(str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    addresses = map(str, alternative.get_values_for_type(x509.IPAddress))
    return (*alternative.get_values_for_type(x509.DNSName), *addresses)


def make_root(key: EllipticCurvePrivateKey, name: str, days: int) -> x509.Certificate:
    """Return a self-signed CA certificate that signs certificates but no further CAs."""
    from cryptography import x509

    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(name, key.public_key(), _end(days)).issuer_name(_subject(name))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _sign(builder.add_extension(usage, critical=True), key)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that can sign: its certificate and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    def issue_server(self, key: EllipticCurvePublicKey, names: tuple[str, ...], days: int) -> x509.Certificate:
        """Return a server certificate for the DNS names and addresses ``names``; the first is the common name."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        alternative = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._issue(key, names[0], days, ExtendedKeyUsageOID.SERVER_AUTH, alternative)

    def issue_client(self, key: EllipticCurvePublicKey, name: str, days: int) -> x509.Certificate:
        """Return a client certificate with the common name ``name``."""
        from cryptography.x509.oid import ExtendedKeyUsageOID

        return self._issue(key, name, days, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self,
        key: EllipticCurvePublicKey,
        name: str,
        days: int,
        purpose: x509.ObjectIdentifier,
        alternative: x509.SubjectAlternativeName | None = None,
    ) -> x509.Certificate:
        from cryptography import x509

        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        # A certificate that outlives its CA is rejected from the CA's end on.
        end = min(_end(days), self.certificate.not_valid_after_utc)
        builder = (
            _builder(name, key, end)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        )
        if alternative is not None:
            builder = builder.add_extension(alternative, critical=False)
        return _sign(builder, self.key)


def _builder(name: str, key: EllipticCurvePublicKey, end: datetime) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _end(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _sign(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    # X.509 limits a common name to 64 characters. Clients look at the alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
