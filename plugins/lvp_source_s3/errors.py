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
    "NoSuchKey": (RemoteNotFoundError, "there is no such object in the bucket"),
    "NoSuchVersion": (RemoteNotFoundError, "the bucket does not hold that version of the object"),
    "NoSuchBucket": (RemoteNotFoundError, "there is no such bucket"),
    "MethodNotAllowed": (RemoteNotFoundError, "that version of the object is a mark of its removal"),
    "AccessDenied": (RemoteDeniedError, "{who} may not read it"),
    "AllAccessDisabled": (RemoteDeniedError, "the bucket is closed for everyone"),
    "InvalidAccessKeyId": (RemoteDeniedError, "the server does not know the access key of source {source}"),
    "SignatureDoesNotMatch": (
        RemoteDeniedError,
        "the server does not accept the signature: the secret key of source {source} is wrong,"
        " or a proxy changes the requests on their way",
    ),
    "ExpiredToken": (RemoteDeniedError, "the session token of source {source} has expired"),
    "InvalidToken": (RemoteDeniedError, "the server does not accept the session token of source {source}"),
    "InvalidTokenId": (RemoteDeniedError, "the server does not accept the session token of source {source}"),
    "RequestTimeTooSkewed": (RemoteDeniedError, "the clocks of this host and of the server are too far apart"),
    "InvalidObjectState": (SourceError, "the object is archived and has to be restored first"),
    "InvalidBucketName": (SourceError, "the server does not accept the bucket's name"),
    "InternalError": (RemoteUnavailableError, "the server had an error of its own"),
    "ServiceUnavailable": (RemoteUnavailableError, "the server cannot give it now"),
    "SlowDown": (RemoteUnavailableError, "the server asks to slow down"),
    "SlowDownRead": (RemoteUnavailableError, "the server asks to slow down"),
    "RequestTimeout": (RemoteUnavailableError, "the server waited too long for the request"),
    "XMinioServerNotInitialized": (RemoteUnavailableError, "the server is still starting"),
}
# These tell the right region somewhere in the answer.
_WRONG_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraint"}


def meaning(
    status: int, headers: Mapping[str, str], body: bytes, where: str, source: str, *, anonymous: bool
) -> ProvisionerError | None:
    """The error for a refusal of the object at ``where``; None where its code says no more than its status."""
    # No XML parser is let near a stranger's bytes for the sake of two words.
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
    """``text`` if it can be a region's name; a server may have put anything there."""
    return text if re.fullmatch(r"[a-z0-9-]{2,24}", text) else None


def _element(body: bytes, name: str) -> str | None:
    match = re.search(rf"<{name}>([A-Za-z0-9-]{{1,60}})</{name}>".encode(), body)
    return match[1].decode() if match else None
