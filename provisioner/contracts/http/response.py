"""What a response means: its status, the version it names, and which bytes of the image follow.

Pure decisions over status and headers; reads no body and raises or returns errors of the one tree only.
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
_PASSING = {408, 421, 423, 425, 429, 500, 502, 503, 504, 509}
# Web servers label a stored .gz with its encoding; that is no encoding on the way.
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
    """Bytes of an image that a response brings: from ``start`` on, ``length`` of them (None: nobody says).

    ``lacking`` more were asked for and are there, but the server will not send them in this response. ``framed``:
    the body is cut into chunks, so that the socket holds more than the image's bytes.
    """

    start: int
    length: int | None
    lacking: int = 0
    framed: bool = False


def fault(status: int, where: str) -> ProvisionerError | None:
    """What an answer's status means; None where it is a good one."""
    if status in {200, 206}:
        return None
    if status in {404, 410}:
        return RemoteNotFoundError(f"{where} does not exist (HTTP {status})")
    if status in {401, 403, 407}:
        who = "the proxy" if status == 407 else "the server"
        return RemoteDeniedError(f"{who} denies access to {where} (HTTP {status})")
    if status in {412, 416}:
        return RemoteChangedError(f"{where} changed on the server while it was being fetched (HTTP {status})")
    if status in _PASSING:
        return RemoteUnavailableError(f"the server cannot give {where} now (HTTP {status})")
    return SourceError(f"the server answered HTTP {status} for {where}")


def version_of(headers: httpx.Headers) -> str | None:
    """A strong ETag as it stands, in its quotes; else the time of the last change."""
    etag = headers.get("etag", "")
    if etag.startswith('"'):
        return str(etag)
    modified = headers.get("last-modified")
    return f"modified {modified}" if modified else None


def whole_size(status: int, headers: httpx.Headers) -> int | None:
    """The whole image's size in bytes, where the answer tells it."""
    if status in {206, 416}:
        total = headers.get("content-range", "").rpartition("/")[2]
        return _number(total)
    return _number(headers.get("content-length", ""))


def check_encoding(headers: httpx.Headers, url: ImageUrl) -> None:
    """Raise SourceError where the body is not the image's own bytes."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"} and not shown(url).lower().endswith(_LABELS.get(encoding, ())):
        # A server may put anything there, what it was asked for too: only what looks like an encoding is shown.
        name = f" {encoding!r}" if re.fullmatch(r"[a-z][a-z-]{0,20}", encoding) else ""
        raise SourceError(f"{shown(url)} comes with content encoding{name}, which was not asked for")


def span_of(status: int, headers: httpx.Headers, start: int, stop: int | None, where: str) -> Span:
    """Which bytes will come in answer to a request for ``[start, stop)``. Raises SourceError where it contradicts."""
    promised = None if "transfer-encoding" in headers else _number(headers.get("content-length", ""))
    framed = promised is None
    if status != 206:
        length = promised if stop is None or (promised is not None and promised <= stop) else stop
        return Span(0, length, framed=framed)
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("content-range", ""))
    if match is None:
        raise SourceError(f"{where}: the server answered with a range that cannot be read")
    first, end, total = int(match[1]), int(match[2]) + 1, _number(match[3])
    if first != start or end <= first or (stop is not None and end > stop) or (total is not None and end > total):
        raise SourceError(f"{where}: the server answered with another range than the one asked for")
    if promised is not None and promised != end - first:
        raise SourceError(f"{where}: the server's range and its length contradict each other")
    wanted = min(filter(None, (stop, total)), default=end)
    return Span(first, end - first, lacking=max(0, wanted - end), framed=framed)


def _number(text: str) -> int | None:
    # Twenty digits are beyond any disk; int() is slow on thousands.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None
