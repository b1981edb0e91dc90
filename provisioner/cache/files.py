"""Publishes, opens and removes the cache's files, in the order that keeps disk and index consistent.

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
from provisioner.cache.index import Index, end_of, is_file_of, is_intact
from provisioner.cache.partials import Partials
from provisioner.contracts import MIB
from provisioner.contracts.errors import CacheError
from provisioner.download.chunk_sums import ChunkSummer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from provisioner.contracts import RemoteImage, Signer
    from provisioner.download.hashing import Hashes
    from provisioner.download.inspection import ImageInfo

log = structlog.get_logger(__name__)

_READ = 1 * MIB


class CacheFiles:
    """The directory of published images; partial downloads and the index are in its subdirectory ``.lvp``.

    Methods raise OSError and CacheError.
    """

    def __init__(self, directory: Path, report: Callable[[str, str], None]) -> None:
        """Open the directory. ``report(what, file)`` is called for files that an earlier run left behind."""
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._directory = directory
        # Digests whose files are gone but whose rows could not be deleted. The next start drops such rows.
        self._stale_rows: set[str] = set()
        self.index = Index(directory)
        try:
            self.partials = Partials(directory / ".lvp" / "partial", report)
            self.entries, self.urls = self.index.load()
            for entry in self.index.adopt(self.entries, time.time()):
                self.entries[entry.sha256] = entry
                report("added an unknown image file to the index", entry.file_name)
        except BaseException:
            self.index.close()
            raise

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
        signature: tuple[Signer, str] | None = None,
        pinned: bool = False,
    ) -> Entry:
        """Publish a verified file: flush it, make it read-only, add it to the index and give it its final name.

        ``pinned``: protect it from eviction. ``known`` is the existing entry of the same content, if any. Its file is
        kept if it is intact and not ``damaged``; otherwise it is replaced. ``signature``: who signed the image, and the
        id of the key's file.
        """
        now, digests, sums = time.time(), hashes.digests, hashes.sums
        signed = {} if signature is None else {"signed_by": signature[0], "signed_under": signature[1]}
        self._stale_rows.discard(digests["sha256"])
        if known is not None and not damaged and is_intact(self._directory, known):
            sha512 = known.sha512 or digests.get("sha512")
            pinned = known.pinned or pinned
            entry = msgspec.structs.replace(known, last_used_at=now, sha512=sha512, pinned=pinned, **signed)
            self.index.put(entry, remote.url.text, remote.version, sums)
            self._remove_spare(partial)
            return entry
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        name = file_name(remote.url, digests["sha256"], info.format, info.compression)
        if known is not None:  # replace the damaged or missing file under its own name
            name = known.file_name
        entry = new_entry(name, remote.url.text, digests, info, os.fstat(fd), now, end_of(fd), pinned=pinned)
        entry = msgspec.structs.replace(entry, **signed)
        # The index first: the next start drops an entry without a file, but would keep a file without an entry.
        self.index.put(entry, remote.url.text, remote.version, sums)
        partial.replace(self._directory / entry.file_name)
        _sync_directory(self._directory)
        return entry

    def record_url(self, entry: Entry, url: str, version: str) -> bool:
        """Record that ``url`` stands for an entry, with what has changed of it; False if its file is damaged."""
        if not is_intact(self._directory, entry):
            return False
        self.index.put(entry, url, version)
        return True

    def open(self, entry: Entry) -> int | None:
        """Return a descriptor of the entry's file; None if it is no longer the published file."""
        if not is_intact(self._directory, entry):
            return None
        fd = os.open(self._directory / entry.file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if is_file_of(entry, os.fstat(fd)):
            return fd
        os.close(fd)
        return None

    def open_checked(self, entry: Entry) -> tuple[int | None, bytes | None]:
        """Return the result of ``open`` and the chunk checksums, which are None if they were never computed."""
        fd = self.open(entry)
        try:
            return fd, self.index.sums(entry.sha256)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise

    def sums_of(self, entry: Entry, check: Callable[[], None]) -> bytes | None:
        """Read the whole file; return its chunk checksums, or None if it no longer has the entry's digest.

        ``check`` is called between reads and may raise to stop.
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
        except CacheError as error:  # the image is usable anyway; a later sweep removes the file
            log.error("the file of a download cannot be removed", reason=error.message)

    def remove(self, entries: Iterable[Entry]) -> tuple[list[Entry], CacheError | None]:
        """Remove files, then their rows; return the entries whose files are gone, and the last error."""
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
        except CacheError as error:  # harmless: the next start drops rows without a file
            log.error("the cache's index could not be written", reason=error.message)
        else:
            self._stale_rows.clear()


def sums_if_intact(fd: int, sha256: str, check: Callable[[], None]) -> bytes | None:
    """Read a whole file; return its chunk checksums, or None if its digest differs or it cannot be read."""
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
