"""The expected digest of an image: parses checksum files and finds them beside the image.

Order of preference: the request's own checksum, ``URL.sha256``, ``URL.sha512``, then ``SHA256SUMS`` and
``SHA512SUMS`` in the image's folder.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import trio

from provisioner.contracts import Checksum, ImageSource
from provisioner.contracts.errors import ImageError, RemoteDeniedError, RemoteNotFoundError, RemoteUnavailableError
from provisioner.contracts.source import closing_chunks
from provisioner.contracts.urls import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provisioner.contracts import ImageUrl

# Debian's largest SHA256SUMS is a tenth of this. A larger response is not a checksum file.
MAX_TEXT = 1024 * 1024
# A minute is enough for MAX_TEXT at 17 KiB/s. min_rate alone would allow a quarter of an hour, and the job would occupy
# a worker for that long.
MAX_SECONDS = 60.0

_LENGTHS = {"sha256": 64, "sha512": 128}
_PLAIN = re.compile(r"\\?([0-9A-Fa-f]{64,128})(?:\s+\*?(.+))?")
_BSD = re.compile(r"(SHA256|SHA512) \((.+)\) = ([0-9A-Fa-f]+)")


def parse(text: str, algorithm: str, file_name: str, *, only_file: bool) -> Checksum | None:
    """Return the checksum of ``file_name`` from a checksum file's text, or None if it is not listed.

    Accepts a bare digest, ``sha256sum`` lines (with a ``*`` mark or paths), BSD lines, and several files in one text.
    If the name is listed in several folders, the one without a folder wins.
    ``only_file``: the text is a sidecar of this image, so a bare digest counts; a name must still match.
    Raises ImageError if a sidecar has no digest or names only other files, or if the digests contradict each other.
    """
    entries = list(_entries(text, algorithm))
    exact = {digest for digest, name in entries if name == file_name}
    elsewhere = {digest for digest, name in entries if name and name.rsplit("/", 1)[-1] == file_name}
    bare = {digest for digest, name in entries if name is None}
    found = exact or elsewhere or (bare if only_file else set())
    if len(found) > 1:
        raise ImageError(f"the {algorithm} checksum file has more than one digest for {file_name}")
    if found:
        return Checksum(algorithm, found.pop())
    if only_file and entries:
        raise ImageError(f"the {algorithm} checksum file names {entries[0][1]}, not {file_name}")
    if only_file:
        raise ImageError(f"the {algorithm} checksum file beside {file_name} contains no {algorithm} digest")
    return None


def _entries(text: str, algorithm: str) -> Iterator[tuple[str, str | None]]:
    """Yield (digest, file name or None) for each checksum line of that algorithm."""
    for raw in text.lstrip("\ufeff").splitlines():
        line = raw.strip()
        if bsd := _BSD.fullmatch(line):
            kind, name, digest = bsd[1].lower(), bsd[2], bsd[3].lower()
        elif plain := _PLAIN.fullmatch(line):
            kind, name, digest = algorithm, plain[2], plain[1].lower()
        else:
            continue
        if kind == algorithm and len(digest) == _LENGTHS[algorithm]:
            yield digest, None if name in {None, "-"} else name.removeprefix("./")  # "-": sha256sum read stdin


async def discover(source: ImageSource, image_url: ImageUrl) -> Checksum | None:
    """Return the checksum published beside the image, or None if there is none. Server errors are raised."""
    for algorithm in ("sha256", "sha512"):
        text = await _read(source, image_url.with_suffix(f".{algorithm}"))
        if text is not None:
            return parse(text, algorithm, image_url.file_name, only_file=True)
    for algorithm in ("sha256", "sha512"):
        text = await _read(source, image_url.sibling(f"{algorithm.upper()}SUMS"))
        if text is not None and (found := parse(text, algorithm, image_url.file_name, only_file=False)):
            return found
    return None


async def _read(source: ImageSource, url: ImageUrl) -> str | None:
    if not source.owns(url):
        return None
    try:
        with trio.fail_after(MAX_SECONDS):
            body = await _read_all(source, url)
    except trio.TooSlowError as error:
        raise RemoteUnavailableError(f"{shown(url)} was not received within {MAX_SECONDS:g} s") from error
    except (RemoteNotFoundError, RemoteDeniedError):
        # Without permission to list, object stores report a missing object as denied.
        return None
    return body.decode("utf-8", errors="replace")


async def _read_all(source: ImageSource, url: ImageUrl) -> bytes:
    body = bytearray()
    async with source.open(url) as stream, closing_chunks(stream) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_TEXT:
                raise ImageError(f"{shown(url)} is too large for a checksum file: more than {MAX_TEXT // 2**20} MiB")
    return bytes(body)
