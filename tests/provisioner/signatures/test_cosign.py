"""Bundles of ``cosign sign-blob --key``, in both forms and of both kinds of keys."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioner.config import SignatureSettings
from provisioner.contracts import AbsolutePath, Signer
from provisioner.contracts.errors import SignatureError
from provisioner.signatures import cosign, read_key
from tests.signers import Cosign

SUMS = b"0123  disk.qcow2\n"
KEYS = {"ECDSA": Cosign(), "Ed25519": Cosign(ed25519=True)}


@pytest.fixture
def key_of(tmp_path):
    def key_of(content):
        path = tmp_path / "cosign.pub"
        path.write_bytes(content)
        return read_key(SignatureSettings(kind="cosign", public_key=AbsolutePath(path)))

    return key_of


def refusal(text, key, content=SUMS):
    with pytest.raises(SignatureError) as caught:
        cosign.parse(text, key, "the signature S").check_text(content, key, "the signature S")
    return caught.value.message


@pytest.fixture(params=KEYS)
def publisher(request):
    return KEYS[request.param]


@pytest.fixture(params=["old_bundle", "new_bundle"])
def form(request):
    return request.param


def test_bundle(publisher, form, key_of):
    key = key_of(publisher.public_key)
    bundle = cosign.parse(getattr(publisher, form)(SUMS), key, "S")
    assert bundle.check_text(SUMS, key, "S") == Signer("cosign", publisher.fingerprint)
    assert bundle.sha256 == (hashlib.sha256(SUMS).hexdigest() if form == "new_bundle" else None)


@pytest.mark.parametrize("form", ["old_bundle", "new_bundle"])
def test_digest_is_enough_for_ecdsa(form, key_of):
    key = key_of(KEYS["ECDSA"].public_key)
    bundle = cosign.parse(getattr(KEYS["ECDSA"], form)(SUMS), key, "S")
    bundle.check_digest(hashlib.sha256(SUMS).hexdigest(), key, "S")
    with pytest.raises(SignatureError):
        bundle.check_digest(hashlib.sha256(b"other").hexdigest(), key, "S")


def test_altered_content(publisher, form, key_of):
    assert "was altered" in refusal(getattr(publisher, form)(SUMS), key_of(publisher.public_key), SUMS + b"x")


def test_altered_digest(publisher, key_of):
    """The digest in a bundle is not signed by itself; it cannot vouch for another content."""
    document = json.loads(publisher.new_bundle(SUMS))
    other = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    document["messageSignature"]["messageDigest"]["digest"] = other
    assert "was altered" in refusal(json.dumps(document).encode(), key_of(publisher.public_key), b"other")


def test_other_key(publisher, key_of):
    key = key_of(Cosign().public_key)
    assert refusal(publisher.new_bundle(SUMS), key) == (
        f"the signature S was made with the key {publisher.fingerprint}, but {key.path} is the key {key.fingerprint}; "
        "if you trust the other key, put it there"
    )
    assert "or signed with another key; compare the publisher's key" in refusal(publisher.old_bundle(SUMS), key)


def test_hint_of_another_kind(publisher, key_of):
    key = key_of(publisher.public_key)
    for hint in ("key-2024", base64.b64encode(b"short").decode()):
        bundle = publisher.new_bundle(SUMS, verificationMaterial={"publicKey": {"hint": hint}})
        cosign.parse(bundle, key, "S").check_text(SUMS, key, "S")


@pytest.mark.parametrize(
    "text",
    [
        Cosign().old_bundle(SUMS, cert="LS0tLS1CRUdJTg=="),
        Cosign().new_bundle(SUMS, verificationMaterial={"certificate": {"rawBytes": "MIIC"}}),
        Cosign().new_bundle(SUMS, verificationMaterial={"x509CertificateChain": {"certificates": []}}),
    ],
    ids=["old", "0.3", "0.1"],
)
def test_keyless(text, key_of):
    assert "with a certificate, which is not supported" in refusal(text, key_of(KEYS["ECDSA"].public_key))


def test_attestation(key_of):
    assert "is an attestation" in refusal(b'{"dsseEnvelope": {}}', key_of(KEYS["ECDSA"].public_key))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"<html>", b"[" * 100_000, b"[]", b"{}", b"7", b'{"base64Signature": 5}', b'{"base64Signature": "%"}',
        b'{"messageSignature": {"signature": ""}}', b'{"messageSignature": []}',
        b'{"messageSignature": {"messageDigest": {"algorithm": "SHA2_512", "digest": "AA=="}, "signature": "AA=="}}',
        b'{"messageSignature": {"messageDigest": {"algorithm": "SHA2_256", "digest": "AA=="}, "signature": "AA=="}}',
    ],
    ids=[str(number) for number in range(12)],
)  # fmt: skip
def test_malformed(text, key_of):
    assert "is malformed" in refusal(text, key_of(KEYS["ECDSA"].public_key))


@pytest.mark.parametrize("form", ["old_bundle", "new_bundle"])
def test_signature_that_is_no_signature(form, key_of):
    publisher = Cosign()
    publisher.signature = lambda data: base64.b64encode(b"nonsense").decode()
    assert "does not match" in refusal(getattr(publisher, form)(SUMS), key_of(publisher.public_key))


@pytest.mark.parametrize(
    "secret", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())], ids=["RSA", "P-384"]
)
def test_unsupported_key(secret, key_of):
    pem = secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(SignatureError, match="is neither an ECDSA P-256 nor an Ed25519 key"):
        key_of(pem)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"RWQ"])
def test_no_key(content, key_of):
    with pytest.raises(SignatureError, match="is not a public key in PEM form"):
        key_of(content)
