"""Tests that expiry dates and revocation lists are parsed as by another library, and that warnings come in time."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography import x509 as reference
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from provisioner.auth.authenticator import Authenticator
from provisioner.auth.tokens import TokenFile
from provisioner.config import AuthSettings, ServerSettings
from provisioner.contracts.errors import ConfigError, UnauthorizedError
from provisioner.tls import certificates
from provisioner.tls.expiry import TlsFiles, read_tls_files
from provisioner.tls.peer_certificate import PeerCertificate
from provisioner.tls.revocation import revoked

CA = trustme.CA()
KEY = serialization.load_pem_private_key(CA.private_key_pem.bytes(), None)
SIGNER = reference.load_pem_x509_certificate(CA.cert_pem.bytes())
NOW = datetime.now(UTC).replace(microsecond=0)
PEM = serialization.Encoding.PEM


def crl(*serials, ends=NOW + timedelta(7)):
    made = reference.CertificateRevocationListBuilder().issuer_name(SIGNER.subject).last_update(NOW - timedelta(1))
    made = made.next_update(ends)
    for serial in serials:
        entry = reference.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW)
        made = made.add_revoked_certificate(entry.build())
    return made.sign(KEY, hashes.SHA256()).public_bytes(PEM).decode()


@pytest.mark.parametrize(
    "ends",
    [
        NOW + timedelta(days=1),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),  # the last with a two-digit year
        datetime(2050, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_certificates_match_cryptography(ends):
    issued = CA.issue_cert("a.example", not_after=ends).cert_chain_pems[0].bytes()
    known = reference.load_pem_x509_certificate(issued)
    (found,) = certificates.certificates(issued)
    assert found.serial == known.serial_number
    assert found.issuer == known.issuer.public_bytes()
    assert found.not_after == known.not_valid_after_utc.timestamp() == ends.timestamp()


@pytest.mark.parametrize("serials", [(), (1,), (1, 127, 128, 2**64, 2**159 - 1)])
def test_revocation_lists_match_cryptography(serials):
    (found,) = certificates.revocation_lists(crl(*serials).encode())
    assert found.serials == set(serials)
    assert found.issuer == SIGNER.subject.public_bytes()
    assert found.next_update == (NOW + timedelta(7)).timestamp()


def test_several_objects_in_one_file():
    text = "a comment\n" + crl(1) + crl(2) + CA.cert_pem.bytes().decode()
    assert [found.serials for found in certificates.revocation_lists(text.encode())] == [{1}, {2}]
    assert len(certificates.certificates(text.encode())) == 1


DER = SIGNER.public_bytes(serialization.Encoding.DER)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(st.one_of(st.binary(max_size=200), st.integers(0, len(DER) - 1).flatmap(
    lambda at: st.binary(min_size=1, max_size=4).map(lambda put: DER[:at] + put + DER[at + len(put):]))))  # fmt: skip
def test_certificate_malformed(der):
    with contextlib.suppress(ValueError):
        certificates.certificate(der)


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----"])
def test_read_tls_files_without_certificate(tmp_path, text):
    file = tmp_path / "file.pem"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"file\.pem"):
        read_tls_files(ServerSettings(tls_certificate=str(file), tls_key=str(file)))


def test_read_tls_files_earliest_expiry(tmp_path):
    ends = [NOW + timedelta(days) for days in (30, 3)]
    chain = b"".join(CA.issue_cert("a.example", not_after=end).cert_chain_pems[0].bytes() for end in ends)
    (tmp_path / "server.pem").write_bytes(chain)
    (tmp_path / "ca.pem").write_bytes(CA.cert_pem.bytes())
    (tmp_path / "crl.pem").write_text(crl(5))
    server = str(tmp_path / "server.pem")
    tls_files = read_tls_files(
        ServerSettings(
            tls_certificate=server,
            tls_key=server,
            client_ca=str(tmp_path / "ca.pem"),
            client_crl=str(tmp_path / "crl.pem"),
        )
    )
    assert tls_files.expires == {
        "server": ends[1].timestamp(),
        "client_ca": SIGNER.not_valid_after_utc.timestamp(),
        "client_crl": (NOW + timedelta(7)).timestamp(),
    }
    assert tls_files.lists[0].serials == {5}


def test_warnings_before_expiry():
    day = 86400.0
    tls_files = TlsFiles({"server": 10 * day, "client_ca": 100 * day, "client_crl": 2 * day})
    assert tls_files.warnings(0, 1 * day) == []
    assert tls_files.warnings(9.5 * day, 1 * day) == [
        "the server's certificate expires on 1970-01-11, in 0 days",
        "the revocation list of client certificates expired on 1970-01-03",
    ]
    assert tls_files.warnings(99 * day, 1 * day)[1:2] == [
        "the authority of client certificates expires on 1970-04-11, in 1 day"
    ]


def peer(**changes):
    return PeerCertificate(**{"names": ("a",), "serial": 0x0A1B, "issuer": b"i", "fingerprint": "ab" * 32, **changes})


@pytest.mark.parametrize(
    ("entry", "covered"),
    [
        ("serial:0A1B", True),
        ("serial:0x0a1b", True),
        ("serial:0A:1B", True),
        ("serial:0A1C", False),
        ("sha256:" + "AB:" * 31 + "AB", True),
        ("sha256:" + "ac" * 32, False),
    ],
)
def test_revoked_by_configuration(entry, covered):
    AuthSettings(revoked_certificates=[entry])
    assert revoked([entry], []).covers(peer()) is covered


def test_revoked_by_list_of_issuer():
    lists = [certificates.RevocationList(b"i", None, frozenset({0x0A1B}))]
    assert revoked([], lists).covers(peer())
    assert not revoked([], lists).covers(peer(issuer=b"j"))
    assert not revoked([], lists).covers(peer(serial=1))


def test_is_outdated_by_issuer():
    """The list of the issuer that expires last counts; without a list of the issuer, the last of all lists."""
    lists = [certificates.RevocationList(*one, frozenset()) for one in [(b"i", 10.0), (b"i", 20.0), (b"j", 30.0)]]
    assert not revoked([], []).is_outdated(peer(), 1e12)
    found = revoked([], lists)
    assert [found.is_outdated(peer(), now) for now in (15, 19.9, 20)] == [False, False, True]
    assert [found.is_outdated(peer(issuer=b"k"), now) for now in (29, 30)] == [False, True]
    endless = revoked([], [*lists, certificates.RevocationList(b"i", None, frozenset())])
    assert not endless.is_outdated(peer(), 1e12)


def test_identify_with_expired_certificate(tmp_path):
    authenticator = Authenticator(AuthSettings(), TokenFile(tmp_path / "t.json"))
    assert authenticator.identify(peer(), {}).name == "a"
    with pytest.raises(UnauthorizedError, match="expired"):
        authenticator.identify(peer(not_after=0), {})
