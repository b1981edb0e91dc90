"""Interpret a response's status and headers: its error, the image's version, and the range of bytes that follows.

Pure functions, which never read a body.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provisioner.contracts.errors import (
    ProvisionerError,
    RemoteChangedError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
)
from provisioner.contracts.urls import shown

if TYPE_CHECKING:
    import httpx

    from provisioner.contracts.urls import ImageUrl

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEMPORARY = {408, 421, 423, 425, 429, 500, 502, 503, 504, 509}
# Web servers label a stored .gz file with this encoding; the transfer itself is not encoded.
_LABELS = {
    "gzip": (".gz", ".tgz"),
    "x-gzip": (".gz", ".tgz"),
    "bzip2": (".bz2",),
    "x-bzip2": (".bz2",),
    "xz": (".xz",),
    "x-xz": (".xz",),
    "zstd": (".zst",),
}


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


def fault(status: int, where: str) -> ProvisionerError | None:
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
        return RemoteUnavailableError(f"{where} is temporarily unavailable (HTTP {status})")
    return SourceError(f"the server answered HTTP {status} for {where}")


def version_of(headers: httpx.Headers) -> str | None:
    """Return the strong ETag with its quotes, else the modification time, else None."""
    etag = headers.get("etag", "")
    if etag.startswith('"'):
        return str(etag)
    modified = headers.get("last-modified")
    return f"modified {modified}" if modified else None


def whole_size(status: int, headers: httpx.Headers) -> int | None:
    """Return the complete image's size in bytes, None if unknown."""
    if status in {206, 416}:
        total = headers.get("content-range", "").rpartition("/")[2]
        return _number(total)
    return _number(headers.get("content-length", ""))


def check_encoding(headers: httpx.Headers, url: ImageUrl) -> None:
    """Raise SourceError if the body is not the image's own bytes."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"} and not shown(url).lower().endswith(_LABELS.get(encoding, ())):
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
