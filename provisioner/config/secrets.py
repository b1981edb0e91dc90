"""The secrets that a configuration refers to: which there are, and whether they can be read. Never shows one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from provisioner.contracts import Finding, SecretRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def secret_references(value: Any, path: str) -> Iterator[tuple[str, SecretRef]]:
    """Yield the secret references in settings, with their keys."""
    if isinstance(value, SecretRef):
        yield path, value
    elif isinstance(value, msgspec.Struct):
        for info in msgspec.structs.fields(type(value)):
            yield from secret_references(getattr(value, info.name), _join(path, info.encode_name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from secret_references(item, _join(path, key))


def check_secret(reference: SecretRef, environ: Mapping[str, str] = os.environ) -> Finding:
    """Return whether the secret can be read here. Never shows it."""
    kind, _, where = reference.partition(":")
    try:
        secret = reference.read(environ)
    except KeyError:
        what = "its credentials" if kind == "credential" else f"the variable {where}"
        return Finding(None, f"{reference} was not checked: only the service has {what}")
    except UnicodeDecodeError:
        return Finding(False, f"{reference} is not text", "write the secret alone into it")
    except OSError as error:
        return unreadable(reference, error)
    if not secret or not secret.isprintable():
        text = f"{reference} is empty, or has line breaks or control characters"
        return Finding(False, text, "write the secret alone into it")
    return Finding(True, f"{reference} can be read")


def unreadable(path: str, error: OSError) -> Finding:
    """Return the finding for a file that cannot be read."""
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return Finding(None, f"{path} was not checked: user {os.geteuid()} cannot read it", "run the check as root")
    return Finding(False, f"{path} cannot be read: {error.strerror}", "create it, or correct its path and mode")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
