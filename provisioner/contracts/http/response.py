"""Interpret a response's status and headers: its error, the image's version, and the range of bytes that follows.

Pure functions, which never read a body.
"""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from provisioner.contracts.errors import (
    ProvisionerError,
    RemoteChangedError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
)
from provisioner.contracts.types import Checksum
from provisioner.contracts.urls import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from provisioner.contracts.urls import ImageUrl

_TEMPORARY = {408, 421, 423, 425, 429, 500, 502, 503, 504, 509}
# Labels of stored files: the request asks for the file's own bytes, and a known compression is recognized from those.
# The others say nothing about the bytes, or are left over from an upload.
_LABELS = {"", "identity", "none", "binary", "8bit", "aws-chunked", "utf-8", "utf8", "us-ascii", "iso-8859-1"}
_LABELS |= {"gzip", "x-gzip", "bzip2", "x-bzip2", "xz", "x-xz", "zstd"}

# Seconds since its last change after which a file's time stamp, which counts whole seconds, cannot repeat.
MIN_AGE = 2


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of an image in a response: ``length`` bytes (None if unknown) from ``start`` on.

    ``lacking`` further bytes were requested and exist, but the server omits them from this response. ``framed``: the
    body is chunked or has no length, so the socket may carry more than the image's bytes.
    """

    start: int
    length: int | None
    lacking: int = 0
    framed: bool = False


def error_for(status: int, where: str, headers: Mapping[str, str] | None = None) -> ProvisionerError | None:
    """Return the error for a response's status, None if it is a success."""
    if status in {200, 206}:
        return None
    if status in {404, 410}:
        return RemoteNotFoundError(f"{where} does not exist (HTTP {status})")
    if status in {401, 403, 407}:
        who = "the proxy" if status == 407 else "the server"
        return RemoteDeniedError(f"{who} denies access to {where} (HTTP {status})")
    if status in {412, 416}:
        return RemoteChangedError(f"{where} changed on the server while it was being fetched (HTTP {status})")
    if status in _TEMPORARY:
        message = f"{where} is temporarily unavailable (HTTP {status})"
        return RemoteUnavailableError(message, retry_after=retry_after(headers or {}))
    return SourceError(f"the server answered HTTP {status} for {where}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which the server asks to try again, None if it does not say. Understands both forms."""
    text = headers.get("retry-after", "").strip()
    if (seconds := _number(text)) is not None:
        return float(seconds)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time()) if at.tzinfo is not None else None


def digest_of(headers: Mapping[str, str]) -> Checksum | None:
    """Return the digest of the whole image that the server vouches for in its headers, None if there is none.

    Object stores send ``x-amz-checksum-sha256`` (not for objects whose parts were hashed one by one), Artifactory and
    Nexus ``X-Checksum-Sha256``, and others ``Repr-Digest`` (RFC 9530).
    """
    for algorithm, length in (("sha256", 32), ("sha512", 64)):
        repr_digest = re.search(rf"(?:^|[,\s])sha-{length * 8}=:([^:]*):", headers.get("repr-digest", ""))
        amazon = headers.get(f"x-amz-checksum-{algorithm}", "")
        if headers.get("x-amz-checksum-type", "FULL_OBJECT") != "FULL_OBJECT":
            amazon = ""
        for text in (amazon, repr_digest[1] if repr_digest else ""):
            if (raw := _base64(text)) is not None and len(raw) == length:
                return Checksum(algorithm, raw.hex())
        plain = headers.get(f"x-checksum-{algorithm}", "").strip().lower()
        if re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", plain):
            return Checksum(algorithm, plain)
    return None


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # "...-3": the digest of three parts' digests
        return None


def version_of(headers: httpx.Headers) -> str | None:
    """Return the strong ETag with its quotes, else the modification time, else None."""
    etag = headers.get("etag", "")
    if etag.startswith('"'):
        return str(etag)
    modified = headers.get("last-modified")
    return f"modified {modified}" if modified else None


def strong_version_of(headers: httpx.Headers) -> str | None:
    """Return the strong ETag if the bytes cannot change without it; else None.

    Web servers make it of modification time and size. A file can be written twice within one second of that time.
    """
    etag, modified = headers.get("etag", ""), headers.get("last-modified")
    if not etag.startswith('"'):
        return None
    if modified is None:
        return str(etag)
    try:
        age = parsedate_to_datetime(headers.get("date", "")) - parsedate_to_datetime(modified)
    except (TypeError, ValueError):
        return None
    return str(etag) if age.total_seconds() >= MIN_AGE else None


def whole_size(status: int, headers: httpx.Headers) -> int | None:
    """Return the complete image's size in bytes, None if unknown."""
    if status in {206, 416}:
        total = headers.get("content-range", "").rpartition("/")[2]
        return _number(total)
    return _number(headers.get("content-length", ""))


def check_encoding(headers: httpx.Headers, url: ImageUrl) -> None:
    """Raise SourceError if the body is not the image's own bytes."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if not {part.strip() for part in encoding.split(",")} <= _LABELS:
        # The header may contain anything, even the request: show it only if it looks like an encoding.
        name = f" {encoding!r}" if re.fullmatch(r"[a-z][a-z-]{0,20}", encoding) else ""
        raise SourceError(f"{shown(url)} has the unexpected content encoding{name}")


def span_of(status: int, headers: httpx.Headers, start: int, stop: int | None, where: str) -> Span:
    """Return the bytes that follow in response to a request for ``[start, stop)``. Raises SourceError if invalid."""
    promised = None if "transfer-encoding" in headers else _number(headers.get("content-length", ""))
    framed = promised is None
    if status != 206:
        length = promised if stop is None or (promised is not None and promised <= stop) else stop
        return Span(0, length, framed=framed)
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("content-range", ""))
    if match is None:
        raise SourceError(f"{where}: the server sent a malformed Content-Range header")
    first, end, total = int(match[1]), int(match[2]) + 1, _number(match[3])
    if first != start or end <= first or (stop is not None and end > stop) or (total is not None and end > total):
        raise SourceError(f"{where}: the server sent a different range than requested")
    if promised is not None and promised != end - first:
        raise SourceError(f"{where}: Content-Range and Content-Length of the response do not match")
    wanted = min(filter(None, (stop, total)), default=end)
    return Span(first, end - first, lacking=max(0, wanted - end), framed=framed)


def _number(text: str) -> int | None:
    # Twenty digits exceed any disk; int() is slow on thousands of digits.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None
