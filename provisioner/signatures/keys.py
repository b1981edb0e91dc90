"""Reads the public keys that signatures are checked with. Blocking: call it in a thread."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from provisioner.contracts.errors import SignatureError
from provisioner.contracts.small_file import read_small

if TYPE_CHECKING:
    from provisioner.config import SignatureSettings

# How a message goes on after "SIGNATURE does not match what it signs".
ALTERED = "one was altered, or they belong to different versions; try again later, and ask the publisher if it stays so"
_ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?:[A-Za-z]+: [^\r\n]*\r?\n)*[ \t]*\r?\n"
    rb"([A-Za-z0-9+/=\s]+?)(?:\r?\n=[A-Za-z0-9+/]{4})?\s*-----END PGP PUBLIC KEY BLOCK-----"
)
_SECRET_KEY, _PUBLIC_KEY = 5, 6  # types of OpenPGP packets
_MINISIGN_KEY = 42


@dataclass(frozen=True, slots=True)
class Key:
    """The content of a key file. ``id`` changes with the content, so that what was verified before is verified again.

    ``fingerprint`` is empty for a keyring; ``ring`` is its binary form.
    """

    path: str
    id: str
    fingerprint: str = ""
    ring: bytes = b""
    ed25519: Ed25519PublicKey | None = None
    ecdsa: EllipticCurvePublicKey | None = None

    def check_id(self, found: str, where: str) -> None:
        """Raise SignatureError if the signature ``where`` was made with another key, ``found``."""
        if found != self.fingerprint:
            raise SignatureError(
                f"{where} was made with the key {found}, but {self.path} is the key {self.fingerprint}; if you trust "
                "the other key, put it there"
            )


def read_key(settings: SignatureSettings) -> Key:
    """Return the key of the settings. Raises SignatureError if the file cannot be read or is no such key."""
    path = settings.key_path
    try:
        content = read_small(Path(path))
    except OSError as error:
        raise SignatureError(f"the {settings.key_setting} {path} cannot be read: {error.strerror}") from error
    identity = hashlib.sha256(settings.kind.encode() + b"\n" + content).hexdigest()
    read = {"openpgp": _keyring, "minisign": _minisign, "cosign": _cosign}[settings.kind]
    return read(path, identity, content)


def _keyring(path: str, identity: str, content: bytes) -> Key:
    if content[8:12] == b"KBXf":
        raise SignatureError(f"{path} is a keybox of GnuPG; write a keyring with 'gpg --export KEY > FILE'")
    ring = b"".join(_unarmored(path, match[1]) for match in _ARMOR.finditer(content)) or content
    packet = (ring[0] & 0x3F if ring[0] & 0x40 else ring[0] >> 2 & 0x0F) if ring and ring[0] & 0x80 else None
    if packet == _SECRET_KEY:
        raise SignatureError(f"{path} is a secret key; put the public one there: 'gpg --export KEY > FILE'")
    if packet != _PUBLIC_KEY:
        raise SignatureError(f"{path} is not a file of OpenPGP public keys; write one with 'gpg --export KEY > FILE'")
    return Key(path, identity, ring=ring)


def _unarmored(path: str, text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise SignatureError(f"{path} is damaged: its armor cannot be decoded") from error


def _minisign(path: str, identity: str, content: bytes) -> Key:
    lines = [line for line in content.decode(errors="replace").split("\n") if line.strip()]
    try:
        raw = base64.b64decode(lines[-1].strip(), validate=True) if len(lines) in {1, 2} else b""
    except ValueError:
        raw = b""
    if len(raw) != _MINISIGN_KEY or raw[:2] != b"Ed":
        raise SignatureError(f"{path} is not a minisign public key; it is the file minisign.pub of the publisher")
    return Key(path, identity, minisign_id(raw[2:10]), ed25519=Ed25519PublicKey.from_public_bytes(raw[10:]))


def minisign_id(raw: bytes) -> str:
    """Return a key id as minisign prints it."""
    return raw[::-1].hex().upper()


def _cosign(path: str, identity: str, content: bytes) -> Key:
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{path} is not a public key in PEM form, such as cosign.pub") from error
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(der).hexdigest()
    if isinstance(key, Ed25519PublicKey):
        return Key(path, identity, fingerprint, ed25519=key)
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return Key(path, identity, fingerprint, ecdsa=key)
    raise SignatureError(f"{path} is neither an ECDSA P-256 nor an Ed25519 key, the ones that cosign makes")
