"""Removal of secrets from urls in errors, log lines and events.

A query may be a signature that grants access to the image, and a login before the host may be a password.
"""

from __future__ import annotations

import re

# A url's query or fragment ends at white space, a quote or an angle bracket.
_LOGIN = re.compile(r"(?i)(?<=://)[^\s/?#'\"<>]*@")
_QUERY = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s?#'\"<>]*)([?#][^\s'\"<>]*)")
# It names which version of an object is meant, and gives access to nothing.
_VERSION_ID = re.compile(r"versionId=[A-Za-z0-9._~%-]{1,128}")
# Parameters of presigned urls without their url, as in a server's error message.
_SIGNED = re.compile(
    r"(?i)\b((?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|token)=)[^\s&'\"<>]+"
)


def redact(text: str) -> str:
    """Return ``text`` with the query and login removed from every url."""
    if "://" in text:
        text = _QUERY.sub(_without_secret, _LOGIN.sub("...@", text))
    return _SIGNED.sub(r"\1...", text) if "=" in text else text


def is_version_id(query: str) -> bool:
    """Return whether a url's query is an object's version and nothing else, and so no secret."""
    return _VERSION_ID.fullmatch(query) is not None


def _without_secret(url: re.Match[str]) -> str:
    return url[0] if is_version_id(url[2][1:].rstrip(":;,.)")) and url[2][0] == "?" else url[1]
