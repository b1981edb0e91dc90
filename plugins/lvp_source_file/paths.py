"""Maps a ``file:`` url to a folder of the source and a path beneath it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.contracts import ImageUrl


class Place(NamedTuple):
    """A file or a folder: the configured folder, and the path beneath it as the kernel takes it, ``.`` for itself."""

    folder: str
    path: bytes
    is_folder: bool = False


def place_of(url: ImageUrl, folders: Sequence[str]) -> Place | None:
    """Return what ``url`` names: a folder if it ends with a slash. None if it is under none of the ``folders``.

    Each segment of the url is unquoted once and is one name: ``%2F`` is no separator.
    """
    if url.scheme != "file" or url.host or url.query or "?" in url.text:
        return None
    names = [unquote_to_bytes(segment) for segment in url.path[1:].split("/")]
    is_folder = names[-1] == b""
    if is_folder:
        names.pop()
    if any(name in {b"", b".", b".."} or b"/" in name or b"\0" in name for name in names):
        return None
    # The outermost folder allows the most links, as if the inner ones were not named.
    for folder in sorted(folders, key=len):
        parts = folder.strip("/").encode().split(b"/")
        if names[: len(parts)] == parts and len(names) + is_folder > len(parts):
            return Place(folder, b"/".join(names[len(parts) :]) or b".", is_folder)
    return None


def prefix_of(folder: str) -> str:
    """Return the beginning of the urls of the folder's files."""
    return f"file://{quote(folder.rstrip('/'))}/"
