"""The headers of Standard Webhooks (https://www.standardwebhooks.com): id, timestamp and HMAC-SHA256 signature."""

from __future__ import annotations

import base64
import binascii
import hmac

_PREFIX = "whsec_"
# Bytes of a key, as the specification recommends.
_SHORTEST, _LONGEST = 24, 64


class BadSecretError(Exception):
    """The secret is no signing key; the message does not show it."""


def key_of(secret: str) -> bytes:
    """Return the key of ``whsec_...``. Raises BadSecretError."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not _SHORTEST <= len(key) <= _LONGEST:
        raise BadSecretError(f"the secret must be {_PREFIX} and {_SHORTEST} to {_LONGEST} bytes in base64")
    return key


def headers_of(key: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a message that is sent at ``timestamp``, in seconds since the epoch."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return {
        "Content-Type": "application/json",
        "User-Agent": "libvirt-volume-provisioner",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }
