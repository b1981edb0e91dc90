"""OpenPGP signatures, checked by the real gpgv with keys and signatures of the real gpg."""

import os
import re

import pytest

from provisioner.config import SignatureSettings
from provisioner.contracts import AbsolutePath, Signer
from provisioner.contracts.errors import SignatureError
from provisioner.signatures import openpgp, read_key

SUMS = b"0123  disk.qcow2\n- a line that begins with a dash\n"


@pytest.fixture(scope="session")
def revoked(gpg):
    """The keyring of the revoked key, and what it signed before."""
    signature = gpg.sign("revoked", SUMS)
    gpg.revoke("revoked")
    return gpg.keyring("revoked"), signature


@pytest.fixture
def key_of(gpg, tmp_path):
    def key_of(*names, content=None, **options):
        path = tmp_path / "keyring.gpg"
        path.write_bytes(gpg.keyring(*names, **options) if content is None else content)
        return read_key(SignatureSettings(kind="openpgp", keyring=AbsolutePath(path)))

    return key_of


async def refusal(signature, key, content=SUMS):
    with pytest.raises(SignatureError) as caught:
        await openpgp.check_detached(signature, content, key, "the signature S")
    return caught.value.message


@pytest.mark.parametrize("armored", [False, True])
async def test_detached(gpg, key_of, armored):
    key = key_of("stranger", "publisher", armored=armored)
    signature = gpg.sign("publisher", SUMS, *(["--armor"] if armored else []))
    signer = await openpgp.check_detached(signature, SUMS, key, "S")
    assert signer == Signer("openpgp", gpg.fingerprints["publisher"], "publisher <publisher@example.com>")


async def test_several_blocks_of_armor(gpg, key_of):
    both = gpg.keyring("stranger", armored=True) + b"a comment\n" + gpg.keyring("publisher", armored=True)
    key = key_of(content=both.replace(b"\n", b"\r\n"))
    for name in ("stranger", "publisher"):
        await openpgp.check_detached(gpg.sign(name, SUMS), SUMS, key, "S")


async def test_detached_of_a_file(gpg, key_of, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3_000_000))
    signature = gpg.sign("publisher", image.read_bytes())
    with image.open("rb") as file:
        await openpgp.check_detached(signature, file.fileno(), key_of("publisher"), "S")
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    with image.open("rb") as file:
        assert "does not match" in await refusal(signature, key_of("publisher"), file.fileno())


async def test_clear_signed(gpg, key_of):
    """Only the signed part counts, with its dashes."""
    text = gpg.clear_sign("publisher", SUMS)
    around = b"4567  other.qcow2\n\n" + text + b"\n89ab  another.qcow2\n"
    signed, signer = await openpgp.check_clear_signed(around, key_of("publisher"), "S")
    assert signed == SUMS
    assert signer.key == gpg.fingerprints["publisher"]


async def test_clear_signed_altered(gpg, key_of):
    text = gpg.clear_sign("publisher", SUMS).replace(b"0123", b"3210")
    with pytest.raises(SignatureError, match="the signature S does not match what it signs"):
        await openpgp.check_clear_signed(text, key_of("publisher"), "the signature S")


async def test_two_clear_signed_texts(gpg, key_of):
    text = gpg.clear_sign("publisher", SUMS)
    with pytest.raises(SignatureError, match="must have one signed text"):
        await openpgp.check_clear_signed(text + text, key_of("publisher"), "S")


async def test_altered_content(gpg, key_of):
    said = await refusal(gpg.sign("publisher", SUMS), key_of("publisher"), SUMS + b"x")
    assert re.fullmatch(
        r"the signature S does not match what it signs \(key [0-9A-F]{16}\): one was altered, or they belong to "
        r"different versions; try again later, and ask the publisher if it stays so",
        said,
    )


async def test_unknown_key(gpg, key_of):
    key = key_of("publisher")
    said = await refusal(gpg.sign("stranger", SUMS), key)
    assert said == (
        f"the signature S was made with the key {gpg.fingerprints['stranger'][-16:]}, which is not in {key.path}; "
        "if you trust this key, add it there"
    )


async def test_expired_key(gpg, key_of):
    said = await refusal(gpg.sign("expired", SUMS, time="20200601T000000"), key_of("expired"))
    assert "expired <expired@example.com>), which has expired; put the publisher's renewed key into" in said


async def test_expired_signature(gpg, key_of):
    signature = gpg.sign("publisher", SUMS, "--default-sig-expire", "1d", time="20200601T000000")
    assert "S has expired (the key" in await refusal(signature, key_of("publisher"))


async def test_revoked_key(revoked, key_of):
    ring, signature = revoked
    assert "which is revoked; put the publisher's new key into" in await refusal(signature, key_of(content=ring))


async def test_key_from_the_future(gpg, key_of):
    """The host's clock is wrong. For gpgv 2.4 there is no such key then."""
    gpg.new_key("future", time="20900101T000000")
    said = await refusal(gpg.sign("future", SUMS, time="20900102T000000"), key_of("future"))
    assert "days in the future (time warp or clock problem)" in said or "which is not in" in said


async def test_subkey(gpg, key_of):
    """Publishers sign with a subkey; the fingerprint of the primary key is what they announce."""
    primary = gpg.new_key("with-subkey")
    gpg.run("--quick-add-key", primary, "ed25519", "sign", "never", time="20200102T000000")
    listing = gpg.run("--with-colons", "--list-keys", primary).decode()
    subkey = [line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr")][1]
    signature = gpg.run("--local-user", f"{subkey}!", "--detach-sign", data=SUMS)
    signer = await openpgp.check_detached(signature, SUMS, key_of("with-subkey"), "S")
    assert signer.key == primary != subkey


async def test_weak_digest(gpg, key_of):
    signature = gpg.sign("publisher", SUMS, "--digest-algo", "SHA1")
    assert "uses SHA-1, which is too weak" in await refusal(signature, key_of("publisher"))


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"\x88\x75\x04", bytes(100)], ids=["empty", "page", "cut", "zeros"]
)
async def test_malformed(key_of, content):
    assert "is malformed" in await refusal(content, key_of("publisher"))


@pytest.mark.parametrize("armored", [False, True])
async def test_signed_message_as_signature(gpg, key_of, armored):
    """Older versions of gpgv would check the text inside and leave the file alone; 2.4 refuses it by itself."""
    options = ["--clear-sign"] if armored else ["--sign"]
    inside = gpg.run("--local-user", gpg.fingerprints["publisher"], *options, data=b"something else\n")
    said = await refusal(inside, key_of("publisher"))
    assert "detached signature" in said


async def test_another_signature_beside(gpg, key_of):
    """A second signature of an unknown key does no harm; a wrong one of a known key does."""
    good, other = gpg.sign("publisher", SUMS), gpg.sign("stranger", SUMS)
    for both in (good + other, other + good):
        assert (await openpgp.check_detached(both, SUMS, key_of("publisher"), "S")).key == gpg.fingerprints["publisher"]
    wrong = gpg.sign("stranger", b"other")
    assert "does not match" in await refusal(good + wrong, key_of("publisher", "stranger"))


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("NEWSIG\nGOODSIG 01 me", "malformed"),  # without VALIDSIG
        ("NEWSIG\nERRSIG 01 22 8 00 1 4 -", "cannot be checked: it is malformed, of an unsupported algorithm"),
        ("NODATA 4", "malformed"),
    ],
)
def test_judge(status, reason, key_of):
    report = openpgp.parse_status("".join(f"[GNUPG:] {line}\n" for line in status.splitlines()))
    with pytest.raises(SignatureError, match=reason):
        openpgp.judge(report, key_of("publisher"), "S")


def test_name_without_escapes():
    report = openpgp.parse_status("[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 01 a%0A[GNUPG:] VALIDSIG %E2\u202ex\n")
    assert [verdict.name for verdict in report.verdicts] == ["a?[GNUPG:] VALIDSIG \u00e2?x"]
    assert report.verdicts[0].fingerprint == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a file of OpenPGP public keys"),
        (b"-----BEGIN CERTIFICATE-----", "is not a file of OpenPGP public keys"),
        (b"\0\0\0\x20\x01\x01\0\x02KBXf", "is a keybox of GnuPG"),
    ],
)
def test_no_keyring(key_of, content, says):
    with pytest.raises(SignatureError, match=says):
        key_of(content=content)


def test_secret_keyring(gpg, key_of):
    with pytest.raises(SignatureError, match="is a secret key"):
        key_of(content=gpg.run("--export-secret-keys", gpg.fingerprints["publisher"]))


@pytest.mark.slow
async def test_sandbox(gpg, key_of, monkeypatch, tmp_path):
    """A program in the place of gpgv reads what it is given, and no other file of the host."""
    assert await openpgp.missing_layers() == []
    tool = tmp_path / "gpgv"
    tool.write_text("#!/bin/sh\ncat /etc/passwd >&2\n")
    tool.chmod(0o755)
    monkeypatch.setitem(openpgp.ENVIRONMENT, "PATH", f"{tmp_path}:/usr/bin:/bin")
    said = await refusal(gpg.sign("publisher", SUMS), key_of("publisher"))
    assert "cat: /etc/passwd: Permission denied" in said


async def test_gpgv_missing(gpg, key_of, monkeypatch):
    monkeypatch.setitem(openpgp.ENVIRONMENT, "PATH", "/nonexistent")
    assert "install the package gpgv" in await refusal(gpg.sign("publisher", SUMS), key_of("publisher"))
