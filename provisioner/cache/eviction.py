"""Which cached images are evicted, and how many bytes must go. Pure functions; ``space`` acts on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from provisioner.cache.entry import Entry


def bytes_over(
    wanted: int, *, stored: int, reserved: Iterable[tuple[int, int]], free: int, max_size: int, min_free: int
) -> int:
    """Return the bytes to free before ``wanted`` more bytes fit; none if it is 0 or less.

    ``stored``: bytes of all entries; ``reserved``: (reserved, already written) of each download in progress; ``free``:
    bytes free on the file system. ``max_size`` and ``min_free`` are the configured limits.
    """
    downloads = list(reserved)
    over_size = stored + sum(reserved for reserved, _ in downloads) + wanted - max_size
    over_free = sum(reserved - there for reserved, there in downloads) + wanted + min_free - free
    return max(over_size, over_free)


def evictable(entries: Iterable[Entry], in_use: Collection[str]) -> list[Entry]:
    """Return the entries that may be evicted, least recently used first."""
    free = [entry for entry in entries if not entry.pinned and entry.sha256 not in in_use]
    return sorted(free, key=lambda entry: entry.last_used_at)


def choose_victims(candidates: Iterable[Entry], bytes_needed: int) -> list[Entry] | None:
    """Return the first ``candidates`` that together free ``bytes_needed``; None if all of them do not suffice."""
    victims: list[Entry] = []
    for entry in candidates:
        if bytes_needed <= 0:
            break
        victims.append(entry)
        bytes_needed -= entry.size
    return victims if bytes_needed <= 0 else None
