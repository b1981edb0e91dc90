"""Translates a registry's errors into messages that say what to do. Pure; shows nothing of the registry's own text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from provisioner.contracts.errors import (
    ProvisionerError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# The error codes of the OCI distribution specification.
_MISSING = {
    "MANIFEST_UNKNOWN": "the repository has no such tag or digest",
    "NAME_UNKNOWN": "the registry has no such repository",
    "NAME_INVALID": "the registry rejects the repository's name",
    "BLOB_UNKNOWN": "the registry no longer has the image's layer",
}


class ChallengeError(RemoteDeniedError):
    """The registry wants authorization. ``challenge`` is its WWW-Authenticate header."""

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


def meaning(status: int, headers: Mapping[str, str], body: bytes, where: str, source: str) -> ProvisionerError | None:
    """Return the error for a failed request for ``where``; None if the status alone says it."""
    match = re.search(rb'"code"\s*:\s*"([A-Z_]{1,40})"', body)
    code = match[1].decode() if match else ""
    reason = f"{code}, HTTP {status}" if code else f"HTTP {status}"
    if status == 429 or code == "TOOMANYREQUESTS":
        return RemoteUnavailableError(f"the registry limits requests for {where}{_pause(headers)} ({reason})")
    if status in {401, 403}:
        denied = (
            f"the registry denies access to {where} ({reason}): it does not exist, or the credentials of source "
            f"{source} do not permit reading it"
        )
        return (
            ChallengeError(denied, headers.get("www-authenticate", "")) if status == 401 else RemoteDeniedError(denied)
        )
    if code in _MISSING:
        return RemoteNotFoundError(f"{where} does not exist: {_MISSING[code]} ({reason})")
    return None


def _pause(headers: Mapping[str, str]) -> str:
    """Return when the registry accepts requests again, if it says so in seconds."""
    seconds = headers.get("retry-after", "")
    return f"; it accepts them again in {int(seconds)} s" if re.fullmatch(r"[0-9]{1,6}", seconds) else ""
