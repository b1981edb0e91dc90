"""Urls in text that people read: errors, log lines, events. Owns what of a url is never shown.

A query may be a signature that opens the image to everybody who reads it, and so may a login before the host.
"""

from __future__ import annotations

import re

# A url's query or fragment ends where text around it goes on: at white space, a quote or a bracket.
_LOGIN = re.compile(r"(?i)(?<=://)[^\s/?#'\"<>]*@")
_QUERY = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s?#'\"<>]*)[?#][^\s'\"<>]*")
# Parameters of presigned urls where they stand without their url, as in a server's own words.
_SIGNED = re.compile(
    r"(?i)\b((?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|token)=)[^\s&'\"<>]+"
)


def redact(text: str) -> str:
    """Return ``text`` with every url in it cut before its query and with its login blotted out."""
    if "://" in text:
        text = _QUERY.sub(r"\1", _LOGIN.sub("...@", text))
    return _SIGNED.sub(r"\1...", text) if "=" in text else text
