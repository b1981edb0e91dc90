"""Finds a registry's login in Docker's ``config.json`` or the ``auth.json`` of podman, skopeo and ORAS.

Only logins in the file itself (``auths``) are used. Credential helpers are programs, which the service does not run.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING

import msgspec

from lvp_source_oci.reference import canonical
from provisioner.contracts.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_source_oci.reference import Reference
    from provisioner.contracts import SecretRef


class _Login(msgspec.Struct, rename="lower"):
    auth: str = ""
    username: str = ""
    password: str = ""
    identityToken: str = ""  # noqa: N815 - in the file it has no capital letter: "identitytoken"


class _AuthFile(msgspec.Struct, rename="camel"):
    auths: dict[str, _Login] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


_DECODER = msgspec.json.Decoder(_AuthFile)


def login_for(reference: Reference, ref: SecretRef) -> str | None:
    """Return the login ``user:password`` for a reference, None if the file has none. Blocking. Raises SourceError."""
    file = _read(ref)
    logins = {_normalized(key): login for key, login in file.auths.items()}
    helpers = {_normalized(key): helper for key, helper in file.cred_helpers.items()}
    for key in _keys(reference):
        if helper := helpers.get(key):
            raise SourceError(_no_helper(ref, key, helper))
        login = logins.get(key)
        if login is None:
            continue
        if login.identityToken:
            raise SourceError(f"{ref} has an identity token for {key}, which is not supported; log in with a password")
        if text := _text(login, key, ref):
            return text
        if file.creds_store:  # Docker leaves an empty entry for each login that the helper keeps
            raise SourceError(_no_helper(ref, key, file.creds_store))
    return None


def _no_helper(ref: SecretRef, key: str, helper: str) -> str:
    return (
        f"{ref} leaves the login for {key} to the credential helper {helper[:40]!r}, which this service does not run; "
        "use username and password, or a file with the login itself"
    )


def _keys(reference: Reference) -> Iterator[str]:
    """Yield the keys that may hold the login, the most specific one first."""
    name = f"{reference.registry}/{reference.repository}"
    while "/" in name:
        yield name
        name = name.rpartition("/")[0]
    yield name


def _normalized(key: str) -> str:
    """Return a key of the file without scheme and API version: Docker writes ``https://index.docker.io/v1/``."""
    name = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    name = name.removesuffix("/v1").removesuffix("/v2")
    return canonical(name)


def _text(login: _Login, key: str, ref: SecretRef) -> str:
    if login.username and login.password:
        text = f"{login.username}:{login.password}"
    else:
        try:
            text = base64.b64decode(login.auth, validate=True).decode().rstrip("\0")
        except ValueError:  # its text contains the login
            raise SourceError(f"{ref} has a malformed login for {key}") from None
    if text and (":" not in text or not text.isprintable()):
        raise SourceError(f"{ref} has a malformed login for {key}")
    return text


def _read(ref: SecretRef) -> _AuthFile:
    try:
        return _DECODER.decode(ref.read(dict(os.environ)))
    except KeyError as error:
        raise SourceError(f"the secret {ref} is missing: {error.args[0]} is not set") from error
    except OSError as error:
        raise SourceError(f"the secret {ref} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError):  # their texts may contain a login
        raise SourceError(f"{ref} is not a file of logins, such as Docker's config.json") from None
