"""The cache's files: made, published, opened, removed. Owns their order on disk; not which ones, nor when.

Blocking: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

import msgspec
import structlog

from provisioner.cache.entry import Entry, file_name, new_entry
from provisioner.cache.index import Index, is_file_of, is_intact
from provisioner.cache.partials import Partials
from provisioner.contracts import MIB
from provisioner.contracts.errors import CacheError
from provisioner.download.chunk_sums import ChunkSummer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from provisioner.contracts import RemoteImage
    from provisioner.download.hashing import Hashes
    from provisioner.download.inspection import ImageInfo

log = structlog.get_logger(__name__)

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
        self.partials = Partials(directory / ".lvp" / "partial", report)
        self.entries, self.urls = self.index.load()
        # Digests whose files are gone and whose rows could not be removed; at the next start such rows are dropped.
        self._stale_rows: set[str] = set()
        for entry in self.index.adopt(self.entries, time.time()):
            self.entries[entry.sha256] = entry
            report("took an image file back into the index", entry.file_name)

    def publish(
        self,
        fd: int,
        partial: Path,
        remote: RemoteImage,
        hashes: Hashes,
        info: ImageInfo,
        known: Entry | None,
        *,
        damaged: bool,
    ) -> Entry:
        """Put a verified file under its final name: on disk, read-only, in the index.

        ``known`` is the entry of the same content, if there is one: its file stays, if it still is what it was and
        is not ``damaged``; else it is replaced.
        """
        now, digests, sums = time.time(), hashes.digests, hashes.sums
        self._stale_rows.discard(digests["sha256"])
        if known is not None and not damaged and is_intact(self._directory, known):
            entry = msgspec.structs.replace(known, last_used_at=now, sha512=known.sha512 or digests.get("sha512"))
            self.index.put(entry, remote.url.text, remote.version, sums)
            self._remove_spare(partial)
            return entry
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        name = file_name(remote.url, digests["sha256"], info.format, info.compression)
        if known is not None:  # a file that is wrong, or gone, must not stay beside the right one
            name = known.file_name
        entry = new_entry(name, remote.url.text, digests, info, os.fstat(fd), now)
        # The index first: an entry without its file is dropped at the next start, a file without its entry stays.
        self.index.put(entry, remote.url.text, remote.version, sums)
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

    def open_checked(self, entry: Entry) -> tuple[int | None, bytes | None]:
        """The same, and the checksums of the file's chunks; None for those if they were never made."""
        fd = self.open(entry)
        try:
            return fd, self.index.sums(entry.sha256)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise

    def sums_of(self, entry: Entry, check: Callable[[], None]) -> bytes | None:
        """Read the whole file; the checksums of its chunks, or None if it has no longer the entry's digest.

        ``check`` is called between two reads and may raise.
        """
        fd = self.open(entry)
        if fd is None:
            return None
        try:
            return sums_if_intact(fd, entry.sha256, check)
        finally:
            os.close(fd)

    def _remove_spare(self, partial: Path) -> None:
        try:
            self.partials.remove(partial)
        except CacheError as error:  # the image is there all the same; a later sweep removes the file
            log.error("a download's file cannot be removed", reason=error.message)

    def remove(self, entries: Iterable[Entry]) -> tuple[list[Entry], CacheError | None]:
        """Remove files, then their rows: the entries whose files are gone, and why the others are not."""
        gone: list[Entry] = []
        failure: CacheError | None = None
        for entry in entries:
            try:
                (self._directory / entry.file_name).unlink(missing_ok=True)
            except OSError as error:
                failure = CacheError(f"the cached image {entry.file_name} cannot be removed: {error.strerror}")
                log.error("a cached image cannot be removed", file=entry.file_name, reason=error.strerror)
            else:
                gone.append(entry)
        self._forget(gone)
        return gone, failure

    def _forget(self, gone: Iterable[Entry]) -> None:
        self._stale_rows |= {entry.sha256 for entry in gone}
        try:
            self.index.remove(self._stale_rows)
        except CacheError as error:  # rows without a file do no harm: they are dropped at the next start
            log.error("the cache's index could not be written", reason=error.message)
        else:
            self._stale_rows.clear()


def sums_if_intact(fd: int, sha256: str, check: Callable[[], None]) -> bytes | None:
    """Read a whole file; the checksums of its chunks, or None if it has another digest or cannot be read."""
    digest, summer, buffer, position = hashlib.sha256(), ChunkSummer(), memoryview(bytearray(_READ)), 0
    try:
        while got := os.preadv(fd, [buffer], position):
            check()
            digest.update(buffer[:got])
            summer.feed(buffer[:got])
            position += got
    except OSError as error:
        log.error("a cached image cannot be read", at_byte=position, reason=error.strerror)
        return None
    return summer.finish() if digest.hexdigest() == sha256 else None


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
