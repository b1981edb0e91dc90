"""Translates an object store's error codes into messages that say what to fix. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from provisioner.contracts.errors import (
    ProvisionerError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_MEANING: dict[str, tuple[type[ProvisionerError], str]] = {
    "NoSuchKey": (RemoteNotFoundError, "no such object in the bucket"),
    "NoSuchVersion": (RemoteNotFoundError, "no such version of the object in the bucket"),
    "NoSuchBucket": (RemoteNotFoundError, "no such bucket"),
    "MethodNotAllowed": (RemoteNotFoundError, "that version of the object is a delete marker"),
    "AccessDenied": (RemoteDeniedError, "{who} may not read it"),
    "AllAccessDisabled": (RemoteDeniedError, "all access to the bucket is disabled"),
    "InvalidAccessKeyId": (RemoteDeniedError, "the server does not know the access key of source {source}"),
    "SignatureDoesNotMatch": (
        RemoteDeniedError,
        "the server rejected the signature: the secret key of source {source} is wrong,"
        " or a proxy changes the requests",
    ),
    "ExpiredToken": (RemoteDeniedError, "the session token of source {source} has expired"),
    "InvalidToken": (RemoteDeniedError, "the server rejected the session token of source {source}"),
    "InvalidTokenId": (RemoteDeniedError, "the server rejected the session token of source {source}"),
    "RequestTimeTooSkewed": (RemoteDeniedError, "the clocks of this host and the server differ too much"),
    "InvalidObjectState": (SourceError, "the object is archived and must be restored first"),
    "InvalidBucketName": (SourceError, "the server rejected the bucket name"),
    "InternalError": (RemoteUnavailableError, "internal error of the server"),
    "ServiceUnavailable": (RemoteUnavailableError, "the service is temporarily unavailable"),
    "SlowDown": (RemoteUnavailableError, "too many requests; the server asks to slow down"),
    "SlowDownRead": (RemoteUnavailableError, "too many requests; the server asks to slow down"),
    "RequestTimeout": (RemoteUnavailableError, "the server timed out waiting for the request"),
    "XMinioServerNotInitialized": (RemoteUnavailableError, "the server is still starting"),
}
# Responses with these codes may name the right region, in a header or in the body.
_WRONG_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraint"}


def meaning(
    status: int, headers: Mapping[str, str], body: bytes, where: str, source: str, *, anonymous: bool
) -> ProvisionerError | None:
    """Return the error for a failed request for ``where``; None if the code is missing or unknown."""
    # Do not run an XML parser over untrusted bytes to read two elements.
    code = _element(body, "Code")
    if code is None:
        return None
    region = _region(headers.get("x-amz-bucket-region", "")) or _region(_element(body, "Region") or "")
    if code in _WRONG_REGION:
        advice = f' set region = "{region}" for source {source}' if region else f" check the region of source {source}"
        return SourceError(f"{where}: the bucket is in another region;{advice} ({code})")
    if code not in _MEANING:
        return None
    kind, words = _MEANING[code]
    who = "a caller without credentials" if anonymous else f"the owner of the access key of source {source}"
    return kind(f"{where}: {words.format(source=source, who=who)} ({code}, HTTP {status})")


def _region(text: str) -> str | None:
    """Return ``text`` if it can be a region name, else None: the server may send anything."""
    return text if re.fullmatch(r"[a-z0-9-]{2,24}", text) else None


def _element(body: bytes, name: str) -> str | None:
    match = re.search(rf"<{name}>([A-Za-z0-9-]{{1,60}})</{name}>".encode(), body)
    return match[1].decode() if match else None
