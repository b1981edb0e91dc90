"""Which values of a configuration may be shown: in messages about faults, and by ``lvp config show``."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from provisioner.contracts import AbsolutePath, ByteSize, Duration, SecretRef
from provisioner.contracts.redaction import redact

# Longest value in a message.
_LONGEST = 60
# Keys that contain one of these words may hold a secret.
_SECRET_WORDS = ("token", "password", "passwd", "secret", "authorization", "key")
_REFERENCES = ("file:/", "env:", "credential:")
# Image urls, whose query may be a signature; that of libvirt's uris has nothing to hide.
_IMAGE_URL = re.compile(r"(https?|s3)://", re.IGNORECASE)
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a table"}
HIDDEN = "(not shown)"


def may_hold_secret(key: str) -> bool:
    """Return whether the value of a key with this name is kept out of messages."""
    return any(word in key.lower() for word in _SECRET_WORDS)


def show(value: object, *, secret: bool = False) -> str:
    """Return a value for a message, truncated. If it may be a secret, return only what kind of value it is.

    Values of nested keys that may hold secrets, private keys, and the logins and queries of URLs are left out.
    """
    if secret:
        return f"{next((name for kind, name in _KINDS.items() if isinstance(value, kind)), 'a value')} {HIDDEN}"
    text = msgspec.json.encode(_without_secrets(value), enc_hook=str).decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _without_secrets(value: object, key: str = "") -> object:
    if isinstance(value, dict):
        return {name: _without_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item, key) for item in value]
    if may_hold_secret(key):
        return HIDDEN
    if isinstance(value, str):
        return HIDDEN if "PRIVATE KEY" in value else redact(value)
    return value


def plain(value: Any, key: str = "") -> Any:
    """Return settings as TOML values, without those that are None. Secrets are hidden, also in urls."""
    if isinstance(value, msgspec.Struct):
        fields = {info.encode_name: getattr(value, info.name) for info in msgspec.structs.fields(type(value))}
        return plain(fields, key)
    if isinstance(value, dict):
        return {str(name): plain(item, str(name)) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item, key) for item in value]
    if isinstance(value, AbsolutePath | SecretRef | ByteSize | Duration):
        return str(value)
    if isinstance(value, str) and may_hold_secret(key) and not value.startswith(("/", *_REFERENCES)):
        return HIDDEN
    return redact(value) if isinstance(value, str) and _IMAGE_URL.match(value) else value
