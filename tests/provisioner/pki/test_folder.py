"""The CA's folder: what is made, kept, refused and replaced; the certificates as OpenSSL sees them."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading

import pytest

from provisioner.contracts.errors import ConfigError, ConflictError, InvalidRequestError
from provisioner.pki import PkiFolder
from provisioner.pki.files import write_key

DAYS = 30


@pytest.fixture
def folder(tmp_path):
    made = PkiFolder(tmp_path / "pki")
    made.init("test CA", DAYS)
    return made


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def openssl(*args):
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_modes(tmp_path, umask):
    """Whatever the umask is."""
    folder = PkiFolder(tmp_path / "pki")
    made = [folder.init("test CA", DAYS), folder.server(("a.example",), DAYS), folder.client("ci", DAYS)]
    for one in made:
        assert one.key.stat().st_mode & 0o777 == 0o600
        assert one.certificate.stat().st_mode & 0o777 == 0o644
    assert {path.name for path in folder.path.rglob("*") if path.is_file()} == {
        "ca.pem", "ca.key", "a.example.pem", "a.example.key", "ci.pem", "ci.key"
    }  # fmt: skip


@pytest.mark.slow  # runs openssl
def test_ca_certificate(folder):
    _, text = openssl("x509", "-in", folder.ca_certificate, "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in text
    assert "Certificate Sign, CRL Sign" in text
    assert "NIST CURVE: P-256" in text
    assert openssl("verify", "-x509_strict", "-CAfile", folder.ca_certificate, folder.ca_certificate)[0] == 0


@pytest.mark.slow  # runs openssl
def test_certificates_have_one_use(folder):
    made = {"sslserver": folder.server(("a.example",), DAYS), "sslclient": folder.client("ci", DAYS)}
    for purpose in made:
        for use, one in made.items():
            check = ("verify", "-x509_strict", "-purpose", purpose, "-CAfile", folder.ca_certificate, one.certificate)
            assert (openssl(*check)[0] == 0) == (use == purpose)


@pytest.mark.slow  # runs openssl
def test_certificate_cannot_sign(folder, tmp_path):
    """Neither a server's key nor a second CA below the first."""
    leaf = folder.server(("a.example",), DAYS)
    forged = PkiFolder(tmp_path / "forged")
    forged.path.mkdir()
    forged.ca_certificate.write_bytes(leaf.certificate.read_bytes())
    write_key(forged.ca_key, leaf.key.read_bytes(), overwrite=False)
    made = forged.client("admin", DAYS)
    check = ("verify", "-CAfile", folder.ca_certificate, "-untrusted", leaf.certificate, made.certificate)
    assert openssl(*check)[0] != 0


def test_mutual_tls(folder):
    """With the strictest checks of Python's own TLS, under each of the server's names."""
    server, client = folder.server(("localhost", "127.0.0.1", "::1"), DAYS), folder.client("ci", DAYS)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server.certificate, server.key)
    ours = ssl.create_default_context(cafile=folder.ca_certificate)
    ours.load_cert_chain(client.certificate, client.key)
    for context in (ours, theirs):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    theirs.load_verify_locations(folder.ca_certificate)
    theirs.verify_mode = ssl.CERT_REQUIRED
    for name in ("localhost", "127.0.0.1", "::1"):
        left, right = socket.socketpair()
        subject = []

        def accept(sock=right, subject=subject):
            with theirs.wrap_socket(sock, server_side=True) as wrapped:
                subject.append(wrapped.getpeercert()["subject"])
                wrapped.recv(1)

        thread = threading.Thread(target=accept)
        thread.start()
        with ours.wrap_socket(left, server_hostname=name) as wrapped:
            wrapped.sendall(b"x")
            thread.join()
        assert subject == [((("commonName", "ci"),),)]


def contents(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_second_run_changes_nothing(folder):
    first = [folder.server(("a.example", "192.0.2.7"), DAYS), folder.client("ci", DAYS)]
    before = contents(folder)
    again = [
        folder.init("another name", DAYS + 1),
        folder.server(("192.0.2.7", "A.example")[::-1], DAYS + 1),
        folder.client("ci", DAYS + 1),
    ]
    assert contents(folder) == before
    assert [one.new for one in [*first, *again]] == [True, True, False, False, False]
    assert [one.serial for one in again[1:]] == [one.serial for one in first]


def test_other_names_need_force(folder):
    old = folder.server(("a.example",), DAYS)
    with pytest.raises(ConfigError, match=r"is for a\.example; add --force"):
        folder.server(("a.example", "b.example"), DAYS)
    key = old.key.read_bytes()
    new = folder.server(("a.example", "b.example"), DAYS, force=True)
    assert new.names == ("a.example", "b.example")
    assert new.key.read_bytes() != key


@pytest.mark.slow  # runs openssl
def test_interrupted_call_is_completed_with_its_key(folder):
    one = folder.client("ci", DAYS)
    key = one.key.read_bytes()
    one.certificate.unlink()
    assert folder.client("ci", DAYS).new
    other = folder.client("other", DAYS)
    one.certificate.write_bytes(other.certificate.read_bytes())  # a new key was written, its certificate was not
    assert folder.client("ci", DAYS).new
    assert one.key.read_bytes() == key
    assert openssl("verify", "-CAfile", folder.ca_certificate, one.certificate)[0] == 0


def test_key_that_was_moved_away(folder):
    one = folder.client("ci", DAYS)
    one.key.unlink()
    assert not folder.client("ci", DAYS).new
    assert not one.key.exists()


def test_new_ca_needs_new_certificates(folder):
    folder.client("ci", DAYS)
    folder.init("second CA", DAYS, force=True)
    with pytest.raises(ConfigError, match="not signed by the present CA; add --force"):
        folder.client("ci", DAYS)
    assert [(one.use, one.trusted) for one in folder.list()] == [("CA", True), ("client", False)]
    folder.client("ci", DAYS, force=True)
    assert [one.trusted for one in folder.list()] == [True, True]


def test_certificate_does_not_outlive_its_ca(folder):
    assert folder.client("ci", 10 * DAYS).not_after == folder.list()[0].not_after


def test_expired(tmp_path, monkeypatch):
    folder = PkiFolder(tmp_path)
    folder.init("test CA", DAYS)
    folder.client("ci", 1)
    _in_days(monkeypatch, 2)
    assert [one.expired for one in folder.list()] == [False, True]
    with pytest.raises(ConfigError, match=r"expired on .*; add --force to replace it and its key"):
        folder.client("ci", DAYS)
    _in_days(monkeypatch, DAYS + 1)
    with pytest.raises(ConfigError, match="make a new one with lvp pki init --force"):
        folder.client("ci", DAYS, force=True)
    with pytest.raises(ConfigError, match="add --force to make a new one"):
        folder.init("test CA", DAYS)


def _in_days(monkeypatch, days):
    """Move the clock of the folder ahead."""
    from datetime import datetime, timedelta

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr("provisioner.pki.folder.datetime", Later)


def test_without_ca(tmp_path):
    folder = PkiFolder(tmp_path)
    for call in (lambda: folder.server(("a",), 1), lambda: folder.client("a", 1), folder.list):
        with pytest.raises(ConfigError, match=f"there is no CA in {tmp_path}; make one with lvp pki init"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_unusable_ca(folder):
    key = folder.ca_key.read_bytes()
    folder.ca_key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"others can access the key .*; run chmod 600"):
        folder.client("ci", DAYS)
    folder.ca_key.unlink()
    with pytest.raises(ConfigError, match=r"the CA's key .* is missing"):
        folder.client("ci", DAYS)
    for content, words in ((b"nonsense", "not an unencrypted private key"), (_another_key(), "is not the key of")):
        write_key(folder.ca_key, content, overwrite=True)
        with pytest.raises(ConfigError, match=words):
            folder.client("ci", DAYS)
    write_key(folder.ca_key, key, overwrite=True)
    folder.ca_certificate.write_text("nonsense")
    with pytest.raises(ConfigError, match="is not a certificate in PEM"):
        folder.client("ci", DAYS)


def _another_key():
    from provisioner.pki import certificates

    return certificates.key_pem(certificates.new_key())


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "-x", "a/b", "a b", "ü", "x" * 65])
def test_invalid_client_names(folder, name):
    with pytest.raises(InvalidRequestError, match="cannot name a client"):
        folder.client(name, DAYS)


@pytest.mark.parametrize("name", ["", "../x", "-x", "a/b", "a..b", "https://a", "a:8080", "*", "x" * 254, "x" * 64])
def test_invalid_server_names(folder, name):
    with pytest.raises(InvalidRequestError, match="neither a DNS name nor an IP address"):
        folder.server((name,), DAYS)


@pytest.mark.parametrize(
    "name", ["kvm-7", "*.example.org", "192.0.2.7", "[2001:db8::7]", "_x.example", "x" * 63 + ".org"]
)
def test_valid_server_names(folder, name):
    made = folder.server((name,), DAYS)
    assert made.names == (name.strip("[]"),)
    assert not folder.server((name,), DAYS).new
    assert made.certificate.parent == folder.path / "servers"


def test_existing_key_is_never_overwritten(tmp_path):
    """Two calls at the same time: the second one fails."""
    write_key(tmp_path / "k", b"first", overwrite=False)
    with pytest.raises(ConflictError, match="at the same time"):
        write_key(tmp_path / "k", b"second", overwrite=False)
    assert (tmp_path / "k").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]
