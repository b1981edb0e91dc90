"""Checks minisign signatures, as https://jedisct1.github.io/minisign/ describes them. Pure.

A signature file has four lines: an untrusted comment, the signature of the content (``Ed``: of the content itself;
``ED``: of its BLAKE2b-512), a trusted comment, and the signature of both together.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature

from provisioner.contracts import Signer
from provisioner.contracts.errors import SignatureError
from provisioner.signatures.keys import ALTERED, minisign_id

if TYPE_CHECKING:
    from provisioner.signatures.keys import Key

_TRUSTED = b"trusted comment: "
_SIGNATURE, _GLOBAL = 74, 64  # bytes


@dataclass(frozen=True, slots=True)
class MinisignSignature:
    """A signature with a verified trusted comment, before its content is. ``prehashed``: it is of the BLAKE2b-512."""

    signature: bytes
    prehashed: bool
    comment: str

    def check(self, content: bytes, key: Key, where: str) -> Signer:
        """Check the content, or its BLAKE2b-512 if it is ``prehashed``. Raises SignatureError."""
        assert key.ed25519 is not None
        try:
            key.ed25519.verify(self.signature, content)
        except InvalidSignature as error:
            raise SignatureError(f"{where} does not match what it signs (key {key.fingerprint}): {ALTERED}") from error
        return Signer("minisign", key.fingerprint, self.comment)

    def check_text(self, content: bytes, key: Key, where: str) -> Signer:
        """Check the content, whatever the signature is of. Raises SignatureError."""
        return self.check(hashlib.blake2b(content).digest() if self.prehashed else content, key, where)


def parse(text: bytes, key: Key, where: str) -> MinisignSignature:
    """Return the signature in a file. Raises SignatureError: malformed, of another key, with an altered comment."""
    lines = [line.rstrip(b"\r") for line in text.split(b"\n")]
    try:
        raw, signed_comment = (base64.b64decode(lines[number].strip(), validate=True) for number in (1, 3))
    except (ValueError, IndexError):
        raw = signed_comment = b""
    if len(raw) != _SIGNATURE or len(signed_comment) != _GLOBAL or not lines[2].startswith(_TRUSTED):
        raise SignatureError(f"{where} is malformed: it is not the four lines of a minisign signature")
    if raw[:2] not in {b"Ed", b"ED"}:
        raise SignatureError(f"{where} is malformed: its algorithm is neither Ed nor ED")
    key.check_id(minisign_id(raw[2:10]), where)
    comment = lines[2].removeprefix(_TRUSTED)
    assert key.ed25519 is not None
    try:
        key.ed25519.verify(signed_comment, raw[10:] + comment)
    except InvalidSignature as error:
        raise SignatureError(f"the trusted comment of {where} was altered, so the signature does not count") from error
    shown = "".join(character if character.isprintable() else "?" for character in comment.decode(errors="replace"))
    return MinisignSignature(raw[10:], raw[:2] == b"ED", shown[:200])
