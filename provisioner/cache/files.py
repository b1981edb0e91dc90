"""The cache's files: made, published, opened, removed. Owns their order on disk; not which ones, nor when.

Blocking: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

import msgspec

from provisioner.cache.entry import Entry, file_name, new_entry
from provisioner.cache.index import Index, is_file_of, is_intact
from provisioner.cache.partials import Partials
from provisioner.contracts import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from provisioner.contracts import RemoteImage
    from provisioner.download.inspection import ImageInfo

_READ = 1 * MIB


class CacheFiles:
    """The directory of published images, with the partial ones and the index below ``.lvp``.

    Methods raise OSError and CacheError.
    """

    def __init__(self, directory: Path, report: Callable[[str, str], None]) -> None:
        """Open it. ``report(what, file)`` hears what an earlier life had left."""
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._directory = directory
        self.index = Index(directory)
        self.partials = Partials(directory / ".lvp" / "partial", lambda name: report("removed a broken download", name))
        self.entries, self.urls = self.index.load()
        for entry in self.index.adopt(self.entries, time.time()):
            self.entries[entry.sha256] = entry
            report("took an image file back into the index", entry.file_name)

    def publish(
        self, fd: int, partial: Path, remote: RemoteImage, digests: dict[str, str], info: ImageInfo, known: Entry | None
    ) -> Entry:
        """Put a verified file under its final name: on disk, read-only, in the index.

        ``known`` is the entry of the same content, where there is one: its file stays, if it still is what it was.
        """
        now = time.time()
        if known is not None and is_intact(self._directory, known):
            entry = msgspec.structs.replace(known, last_used_at=now, sha512=known.sha512 or digests.get("sha512"))
            self.index.put(entry, remote.url, remote.version)
            partial.unlink()
            return entry
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        name = file_name(remote.url, digests["sha256"], info.format, info.compression)
        entry = new_entry(name, remote.url, digests, info, os.fstat(fd), now)
        # The index first: an entry without its file is dropped at the next start, a file without its entry stays.
        self.index.put(entry, remote.url, remote.version)
        partial.replace(self._directory / entry.file_name)
        _sync_directory(self._directory)
        return entry

    def open(self, entry: Entry) -> int | None:
        """A descriptor of the entry's file; None where it is not the published one any more."""
        if not is_intact(self._directory, entry):
            return None
        fd = os.open(self._directory / entry.file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if is_file_of(entry, os.fstat(fd)):
            return fd
        os.close(fd)
        return None

    def has_digest(self, entry: Entry, check: Callable[[], None]) -> bool:
        """Whether the whole file still has the entry's digest. ``check`` is called between two reads and may raise."""
        fd = self.open(entry)
        if fd is None:
            return False
        digest, buffer = hashlib.sha256(), bytearray(_READ)
        with os.fdopen(fd, "rb", buffering=0) as file:
            while got := file.readinto(buffer):
                check()
                digest.update(memoryview(buffer)[:got])
        return digest.hexdigest() == entry.sha256

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove files and entries."""
        gone = list(entries)
        for entry in gone:
            (self._directory / entry.file_name).unlink(missing_ok=True)
        self.index.remove(entry.sha256 for entry in gone)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
