"""A cached image as a value, its file's name, and which entries make room. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from provisioner.contracts import Checksum, ImageUrl, RemoteImage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One published image. Sizes in bytes, times in seconds since the epoch; ``mtime_ns`` tells a changed file."""

    sha256: str
    sha512: str | None
    file_name: str
    size: int
    mtime_ns: int
    format: str
    virtual_size: int
    url: str
    added_at: float
    last_used_at: float
    pinned: bool = False

    @property
    def digest(self) -> str:
        """The digest as clients write it."""
        return f"sha256:{self.sha256}"


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an image before it is in the cache."""

    remote: RemoteImage
    checksum: Checksum | None

    @property
    def flight_key(self) -> str:
        """Two requests with the same key share one download."""
        return str(self.checksum) if self.checksum else f"{self.remote.url} {self.remote.version}"


def file_name(url: str, sha256: str, image_format: str) -> str:
    """A name that tells a person what it is; the digest makes it unique."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", ImageUrl.parse(url).file_name)
    stem = re.sub(r"\.(qcow2|img|raw|qcow|vmdk|vhdx?|vdi)$", "", stem).strip("._-")[:80] or "image"
    return f"{stem}-{sha256[:12]}.{image_format}"


def evictable(entries: Iterable[Entry], in_use: Collection[str]) -> list[Entry]:
    """What may be removed to make room, least recently used first."""
    free = [entry for entry in entries if not entry.pinned and entry.sha256 not in in_use]
    return sorted(free, key=lambda entry: entry.last_used_at)


def choose_victims(candidates: Iterable[Entry], bytes_needed: int) -> list[Entry] | None:
    """The first of ``candidates`` that together free ``bytes_needed``; None where all of them do not."""
    victims: list[Entry] = []
    for entry in candidates:
        if bytes_needed <= 0:
            break
        victims.append(entry)
        bytes_needed -= entry.size
    return victims if bytes_needed <= 0 else None
