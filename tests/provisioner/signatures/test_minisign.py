"""minisign signatures, made by the format and by the real minisign."""

import hashlib
import subprocess

import pytest

from provisioner.config import SignatureSettings
from provisioner.contracts import AbsolutePath, Signer
from provisioner.contracts.errors import SignatureError
from provisioner.signatures import minisign, read_key
from tests.signers import Minisign

SUMS = b"0123  disk.qcow2\n"


@pytest.fixture(scope="module")
def publisher():
    return Minisign()


@pytest.fixture
def key_of(tmp_path):
    def key_of(content):
        path = tmp_path / "minisign.pub"
        path.write_bytes(content)
        return read_key(SignatureSettings(kind="minisign", public_key=AbsolutePath(path)))

    return key_of


def refusal(text, key, content=SUMS):
    with pytest.raises(SignatureError) as caught:
        minisign.parse(text, key, "the signature S").check_text(content, key, "the signature S")
    return caught.value.message


@pytest.mark.parametrize("legacy", [False, True])
def test_sums(publisher, key_of, legacy):
    key = key_of(publisher.public_key)
    signature = minisign.parse(publisher.sign(SUMS, comment="version 5 é\x07\u2028", legacy=legacy), key, "S")
    assert signature.check_text(SUMS, key, "S") == Signer("minisign", publisher.id, "version 5 é??")
    assert signature.prehashed is not legacy


def test_windows_line_ends(publisher, key_of):
    key = key_of(publisher.public_key.replace(b"\n", b"\r\n"))
    minisign.parse(publisher.sign(SUMS).replace(b"\n", b"\r\n"), key, "S").check_text(SUMS, key, "S")


def test_prehashed(publisher, key_of):
    key = key_of(publisher.public_key)
    signature = minisign.parse(publisher.sign(SUMS), key, "S")
    signature.check(hashlib.blake2b(SUMS).digest(), key, "S")


@pytest.mark.parametrize("options", [["-H"], ["-l"]], ids=["prehashed", "legacy"])
def test_real_minisign(key_of, tmp_path, options):
    """The tool and this code agree: its signatures count, and it accepts the ones made here."""
    public, secret, sums = (tmp_path / name for name in ("key.pub", "key.sec", "SHA256SUMS"))
    sums.write_bytes(SUMS)

    def tool(*arguments):
        done = subprocess.run(["minisign", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr + done.stdout

    tool("-G", "-W", "-p", public, "-s", secret)
    tool("-S", *options, "-s", secret, "-m", sums, "-t", "release 5")
    key = key_of(public.read_bytes())
    signature = minisign.parse((tmp_path / "SHA256SUMS.minisig").read_bytes(), key, "S")
    assert signature.prehashed is (options == ["-H"])
    assert signature.check_text(SUMS, key, "S").name == "release 5"
    assert "does not match" in refusal((tmp_path / "SHA256SUMS.minisig").read_bytes(), key, SUMS + b"x")
    ours = Minisign()
    public.write_bytes(ours.public_key)
    (tmp_path / "SHA256SUMS.minisig").write_bytes(ours.sign(SUMS, legacy=options == ["-l"]))
    tool("-V", "-p", public, "-m", sums)


@pytest.mark.parametrize("legacy", [False, True])
def test_altered_content(publisher, key_of, legacy):
    said = refusal(publisher.sign(SUMS, legacy=legacy), key_of(publisher.public_key), SUMS + b"x")
    assert said.startswith(f"the signature S does not match what it signs (key {publisher.id}): one was altered")


def test_altered_comment(publisher, key_of):
    text = publisher.sign(SUMS, comment="version 5").replace(b"version 5", b"version 6")
    assert refusal(text, key_of(publisher.public_key)) == (
        "the trusted comment of the signature S was altered, so the signature does not count"
    )


def test_other_key(publisher, key_of):
    other = Minisign(key_id=b"\xff" * 8)
    key = key_of(publisher.public_key)
    assert refusal(other.sign(SUMS), key) == (
        f"the signature S was made with the key {'FF' * 8}, but {key.path} is the key {publisher.id}; "
        "if you trust the other key, put it there"
    )


def test_other_key_with_the_same_id(publisher, key_of):
    assert "was altered" in refusal(Minisign().sign(SUMS), key_of(publisher.public_key))


def test_legacy_passed_off_as_prehashed(publisher, key_of):
    """The signature of a file that happens to be a BLAKE2b-512 is not that of the file with this digest."""
    text = publisher.sign(hashlib.blake2b(SUMS).digest(), legacy=True)
    assert "does not match" in refusal(text, key_of(publisher.public_key))


@pytest.mark.parametrize(
    "text",
    [b"", b"<html>\n\n\n\n", b"untrusted comment: x\nAAAA\ntrusted comment: y\nAAAA\n", b"a\nRW\xff\nb\nc\n"],
    ids=["empty", "page", "short", "no base64"],
)
def test_malformed(publisher, key_of, text):
    assert "is malformed" in refusal(text, key_of(publisher.public_key))


def test_unknown_algorithm(publisher, key_of):
    signature = publisher.sign(SUMS).replace(b"\nRUQ", b"\nRUE")  # "ED" becomes "EA"
    assert "its algorithm is neither Ed nor ED" in refusal(signature, key_of(publisher.public_key))


def test_only_the_line_with_the_key(publisher, key_of):
    assert key_of(publisher.public_key.splitlines()[1]).fingerprint == publisher.id


@pytest.mark.parametrize("content", [b"", b"RWQ", b"untrusted comment: minisign encrypted secret key\nRWRTY0Iy\n"])
def test_no_key(key_of, content):
    with pytest.raises(SignatureError, match="is not a minisign public key"):
        key_of(content)
