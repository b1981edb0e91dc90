"""Checks the bundles of ``cosign sign-blob --key`` with a given public key. Pure; no transparency log is asked.

There are two forms: cosign's own (``base64Signature``) and Sigstore's (``messageSignature``, protobuf's JSON). A
signature of an ECDSA key is of the content's SHA-256, that of an Ed25519 key of the content itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

from provisioner.contracts import Signer
from provisioner.contracts.errors import SignatureError
from provisioner.signatures.keys import ALTERED

if TYPE_CHECKING:
    from provisioner.signatures.keys import Key


@dataclass(frozen=True, slots=True)
class Bundle:
    """A signature of a blob. ``sha256``: the blob's digest in hex, as the bundle states it; it is not verified."""

    signature: bytes
    sha256: str | None

    def check_digest(self, sha256: str, key: Key, where: str) -> Signer:
        """Check a signature of an ECDSA key, given the content's SHA-256 in hex. Raises SignatureError."""
        assert key.ecdsa is not None
        self._compare(sha256, where)
        try:
            key.ecdsa.verify(self.signature, bytes.fromhex(sha256), ECDSA(Prehashed(SHA256())))
        except InvalidSignature as error:
            raise _mismatch(where, key) from error
        return Signer("cosign", key.fingerprint)

    def check_text(self, content: bytes, key: Key, where: str) -> Signer:
        """Check the content itself. Raises SignatureError."""
        sha256 = hashlib.sha256(content).hexdigest()
        if key.ed25519 is None:
            return self.check_digest(sha256, key, where)
        self._compare(sha256, where)
        try:
            key.ed25519.verify(self.signature, content)
        except InvalidSignature as error:
            raise _mismatch(where, key) from error
        return Signer("cosign", key.fingerprint)

    def _compare(self, sha256: str, where: str) -> None:
        if self.sha256 not in {None, sha256}:
            raise SignatureError(
                f"{where} is of a file with the sha256 {self.sha256}, but this one has {sha256}: {ALTERED}"
            )


def _mismatch(where: str, key: Key) -> SignatureError:
    return SignatureError(
        f"{where} does not match what it signs under the key {key.fingerprint} ({key.path}): the file was altered, or "
        "signed with another key; compare the publisher's key with yours"
    )


def parse(text: bytes, key: Key, where: str) -> Bundle:
    """Return the signature in a bundle. Raises SignatureError: malformed, keyless, or of another key."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"{where} is malformed: it is not JSON") from error
    if not isinstance(document, dict):
        raise SignatureError(f"{where} is malformed: it is not a cosign or Sigstore bundle")
    if "base64Signature" in document:
        return _old(document, where)
    if "dsseEnvelope" in document:
        raise SignatureError(
            f"{where} is an attestation, not the signature of a file; ask for one by 'cosign sign-blob'"
        )
    return _new(document, key, where)


def _old(document: dict[str, Any], where: str) -> Bundle:
    signature = _bytes(document["base64Signature"], where)
    if document.get("cert"):
        raise _keyless(where)
    return Bundle(signature, None)


def _new(document: dict[str, Any], key: Key, where: str) -> Bundle:
    message = document.get("messageSignature")
    if not isinstance(message, dict):
        raise SignatureError(f"{where} is malformed: it has neither base64Signature nor messageSignature")
    material = document.get("verificationMaterial")
    material = material if isinstance(material, dict) else {}
    if material.get("certificate") or material.get("x509CertificateChain"):
        raise _keyless(where)
    _check_hint(material.get("publicKey"), key, where)
    digest = message.get("messageDigest")
    sha256 = None
    if digest is not None:
        if not isinstance(digest, dict) or digest.get("algorithm") != "SHA2_256":
            raise SignatureError(f"{where} is malformed: its digest is not a SHA2_256")
        sha256 = _bytes(digest.get("digest"), where).hex()
        if len(sha256) != 64:
            raise SignatureError(f"{where} is malformed: its digest is not a SHA2_256")
    return Bundle(_bytes(message.get("signature"), where), sha256)


def _check_hint(public_key: object, key: Key, where: str) -> None:
    """Compare the bundle's hint with the key; cosign writes the SHA-256 of the key, others may write anything."""
    hint = public_key.get("hint") if isinstance(public_key, dict) else None
    try:
        found = base64.b64decode(hint, validate=True).hex() if isinstance(hint, str) else ""
    except ValueError:
        return
    if len(found) == 64:
        key.check_id(found, where)


def _bytes(value: object, where: str) -> bytes:
    try:
        found = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        found = b""
    if not found:
        raise SignatureError(f"{where} is malformed: a value in it is not base64")
    return found


def _keyless(where: str) -> SignatureError:
    return SignatureError(
        f"{where} was made without a key, with a certificate, which is not supported; the publisher must sign with "
        "'cosign sign-blob --key'"
    )
