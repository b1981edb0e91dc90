"""The published images in memory: looked up by digest or url, with their users and their damage. No I/O."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from provisioner.cache.eviction import evictable
from provisioner.contracts import Checksum
from provisioner.contracts.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from provisioner.cache.entry import Entry
    from provisioner.config import PrewarmSettings


class Users(Counter[str]):
    """The number of users of each image, by sha256; images without users are not in it."""

    def hold(self, sha256: str, count: int = 1) -> None:
        """Prevent the image's eviction."""
        if count:
            self[sha256] += count

    def release(self, sha256: str) -> None:
        """Undo one ``hold``."""
        self[sha256] -= 1
        if not self[sha256]:
            del self[sha256]


class Catalog:
    """The entries by sha256, and the urls they were downloaded from.

    ``changed`` is called with ``added`` or ``removed`` and the entry.
    """

    def __init__(
        self,
        prewarm: Sequence[PrewarmSettings] = (),
        changed: Callable[[str, Entry], None] = lambda _what, _entry: None,
    ) -> None:
        self.users = Users()
        self._changed = changed
        self._prewarm = prewarm
        # Image name -> the (url, checksum) it stands for, and the one before, which is kept until the new one is here.
        self._resolved: dict[str, list[tuple[str, Checksum | None]]] = {}
        self._entries: dict[str, Entry] = {}
        # url -> (server's version, sha256), and the reverse.
        self._urls: dict[str, tuple[str, str]] = {}
        self._urls_of: dict[str, set[str]] = {}
        # Entries that must not be used, but are listed and counted because their files still exist.
        self._damaged: set[str] = set()
        self._removing: set[str] = set()

    def load(self, entries: Mapping[str, Entry], urls: Mapping[str, tuple[str, str]]) -> None:
        """Add what the index contains at the start."""
        self._entries.update(entries)
        for url, (version, sha256) in urls.items():
            self._note_url(url, version, sha256)

    def add(self, entry: Entry, url: str = "", version: str | None = None) -> None:
        """Add an entry with an intact file, and record that ``url`` served it as ``version``."""
        known = entry.sha256 in self._entries and entry.sha256 not in self._damaged
        self._entries[entry.sha256] = entry
        self._damaged.discard(entry.sha256)
        if version is not None:
            self._note_url(url, version, entry.sha256)
        if not known:
            self._changed("added", entry)

    def _note_url(self, url: str, version: str, sha256: str) -> None:
        _, before = self._urls.get(url, ("", ""))
        if before != sha256:
            self._urls_of.get(before, set()).discard(url)
        self._urls[url] = (version, sha256)
        self._urls_of.setdefault(sha256, set()).add(url)

    def change(self, entry: Entry) -> None:
        """Update an entry, if it exists."""
        if entry.sha256 in self._entries:
            self._entries[entry.sha256] = entry

    def forget(self, entry: Entry) -> None:
        """Remove an entry whose file is gone, and its urls."""
        was_there = self._entries.pop(entry.sha256, None) is not None
        self._damaged.discard(entry.sha256)
        for url in self._urls_of.pop(entry.sha256, ()):
            self._urls.pop(url, None)
        if was_there:
            self._changed("removed", entry)

    def mark_damaged(self, entry: Entry) -> None:
        """Never use this entry again, even if its file cannot be removed."""
        if entry.sha256 in self._entries:
            self._damaged.add(entry.sha256)

    def is_damaged(self, sha256: str) -> bool:
        """Whether the entry's file is known to be damaged."""
        return sha256 in self._damaged

    @contextmanager
    def removing(self, entries: Iterable[Entry]) -> Iterator[None]:
        """Hide entries from lookups while their files are removed; they stay listed and counted."""
        digests = {entry.sha256 for entry in entries}
        self._removing |= digests
        try:
            yield
        finally:
            self._removing -= digests

    def find(
        self, checksum: Checksum | None, url: str, version: str | None, may_use: Callable[[str], bool] | None = None
    ) -> Entry | None:
        """Return the entry with that checksum or, without one, the entry of that url and server ``version``.

        ``may_use``: an entry is found by its checksum only if this returns True for one of its urls.
        """
        if checksum is None:
            known = self._urls.get(url)
            found = self._entries.get(known[1]) if known is not None and known[0] == version else None
        else:
            found = self._by_checksum(checksum)
            if found is not None and may_use is not None and not any(map(may_use, self.urls_of(found))):
                return None
        if found is None or found.sha256 in self._damaged or found.sha256 in self._removing:
            return None
        return found

    def latest_of(self, url: str) -> Entry | None:
        """Return the usable entry that ``url`` served last, in whatever version."""
        version, _ = self._urls.get(url, (None, ""))
        return None if version is None else self.find(None, url, version)

    def _by_checksum(self, checksum: Checksum) -> Entry | None:
        if checksum.algorithm == "sha256":
            return self._entries.get(checksum.hex)
        return next((entry for entry in self._entries.values() if entry.sha512 == checksum.hex), None)

    def urls_of(self, entry: Entry) -> set[str]:
        """Return the urls that are known to have served the entry."""
        return self._urls_of.get(entry.sha256, set()) | ({entry.url} if entry.url else set())

    def get(self, sha256: str) -> Entry | None:
        """Return the entry with that digest, usable or not; None if there is none."""
        return self._entries.get(sha256)

    def named(self, digest: str) -> Entry:
        """Return the entry of ``sha256:HEX`` or bare hex, usable or not. Raises NotFoundError."""
        entry = self._entries.get(digest.removeprefix("sha256:"))
        if entry is None:
            raise NotFoundError(f"no cached image has the checksum {digest}")
        return entry

    def evictable(self) -> list[Entry]:
        """Return the entries that may be evicted, least recently used first."""
        return evictable(self._entries.values(), self.users.keys() | self.prewarmed())

    def prewarmed(self) -> set[str]:
        """Return the digests of the cached images that the configuration keeps in the cache.

        Of a url that led to several images, that is the latest one.
        """
        found = (self._prewarmed(image) for image in self._prewarm)
        return {entry.sha256 for entry in found if entry is not None}

    def resolved(self, name: str, url: str, checksum: Checksum | None) -> None:
        """Record what the name of an image to prewarm stands for now."""
        before = [one for one in self._resolved.get(name, ()) if one != (url, checksum)]
        cached = [one for one in before if self._latest(*one) is not None]
        self._resolved[name] = [(url, checksum), *cached[:1]]

    def _prewarmed(self, image: PrewarmSettings) -> Entry | None:
        if image.image is None:
            return self._latest(image.url or "", Checksum.parse(image.checksum) if image.checksum else None)
        found = (self._latest(*one) for one in self._resolved.get(image.image, ()))
        return next((entry for entry in found if entry is not None), None)

    def _latest(self, url: str, checksum: Checksum | None) -> Entry | None:
        """Return the image with that checksum or, without one, the latest that the url led to."""
        if checksum is not None:
            return self._by_checksum(checksum)
        if url in self._urls:
            return self._entries.get(self._urls[url][1])
        # The server names no versions.
        fetched = (entry for entry in self._entries.values() if entry.url == url)
        return max(fetched, key=lambda entry: entry.added_at, default=None)

    def recent(self) -> list[Entry]:
        """Return all entries, most recently used first."""
        return sorted(self._entries.values(), key=lambda entry: entry.last_used_at, reverse=True)

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all entries."""
        return sum(entry.size for entry in self._entries.values())

    @property
    def known_urls(self) -> int:
        """Return the number of known urls."""
        return len(self._urls)
