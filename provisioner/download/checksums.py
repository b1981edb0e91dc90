"""What an image's digest should be: the texts people publish, and where they are looked for.

Parsing is pure. Order of trust: the request's own checksum, ``URL.sha256``, ``URL.sha512``, ``SHA256SUMS``,
``SHA512SUMS`` beside the image.
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

# Debian's largest sums file is a tenth of this; more is no checksum file.
MAX_TEXT = 1024 * 1024
# A checksum file is small: a minute is enough for the largest at 17 KiB a second. min_rate alone would let it take a
# quarter of an hour, with a job's slot held meanwhile.
MAX_SECONDS = 60.0

_LENGTHS = {"sha256": 64, "sha512": 128}
_PLAIN = re.compile(r"\\?([0-9A-Fa-f]{64,128})(?:\s+\*?(.+))?")
_BSD = re.compile(r"(SHA256|SHA512) \((.+)\) = ([0-9A-Fa-f]+)")


def parse(text: str, algorithm: str, file_name: str, *, only_file: bool) -> Checksum | None:
    """The checksum of ``file_name`` in a checksum file's text, or None where the text does not have it.

    Understood: a bare digest, ``sha256sum`` lines (with ``*`` mark or paths), BSD lines, many files in one text.
    Where the same name stands in several folders, the one beside the text is meant.
    ``only_file``: the text is about one image (a sidecar), so a bare digest counts; with a name it must still
    be the image's. Raises ImageError where a sidecar holds no digest, names other files only, or contradicts itself.
    """
    entries = list(_entries(text, algorithm))
    exact = {digest for digest, name in entries if name == file_name}
    elsewhere = {digest for digest, name in entries if name and name.rsplit("/", 1)[-1] == file_name}
    bare = {digest for digest, name in entries if name is None}
    found = exact or elsewhere or (bare if only_file else set())
    if len(found) > 1:
        raise ImageError(f"the {algorithm} checksum file gives {file_name} more than one digest")
    if found:
        return Checksum(algorithm, found.pop())
    if only_file and entries:
        raise ImageError(f"the {algorithm} checksum file names {entries[0][1]}, not {file_name}")
    if only_file:
        raise ImageError(f"the {algorithm} checksum file beside {file_name} holds no {algorithm} digest")
    return None


def _entries(text: str, algorithm: str) -> Iterator[tuple[str, str | None]]:
    """(digest, name or None) of every line that is a checksum line of that algorithm."""
    for raw in text.lstrip("\ufeff").splitlines():
        line = raw.strip()
        if bsd := _BSD.fullmatch(line):
            kind, name, digest = bsd[1].lower(), bsd[2], bsd[3].lower()
        elif plain := _PLAIN.fullmatch(line):
            kind, name, digest = algorithm, plain[2], plain[1].lower()
        else:
            continue
        if kind == algorithm and len(digest) == _LENGTHS[algorithm]:
            yield digest, None if name in {None, "-"} else name.removeprefix("./")  # "-": what came by a pipe


async def discover(source: ImageSource, image_url: ImageUrl) -> Checksum | None:
    """Look for a checksum beside the image. None where there is none; errors of the server are not 'none'."""
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
        raise RemoteUnavailableError(f"{shown(url)} did not come within {MAX_SECONDS:g} s") from error
    except (RemoteNotFoundError, RemoteDeniedError):
        # Object stores answer 'denied' for what does not exist where listing is not allowed.
        return None
    return body.decode("utf-8", errors="replace")


async def _read_all(source: ImageSource, url: ImageUrl) -> bytes:
    body = bytearray()
    async with source.open(url) as stream, closing_chunks(stream) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_TEXT:
                raise ImageError(f"{shown(url)} is larger than a checksum file can be ({MAX_TEXT} bytes)")
    return bytes(body)
