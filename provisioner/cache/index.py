"""The cache's index: a SQLite database with the entries, their urls and their chunk checksums.

Losing the database loses no image: it is rebuilt from the files, whose names contain the start of the digest and which
are hashed again. Blocking: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from provisioner.cache.entry import Entry, new_entry
from provisioner.contracts.errors import CacheError, CacheFullError, ProvisionerError
from provisioner.download.chunk_sums import CHUNK, ChunkSummer
from provisioner.download.inspection import FileInspection
from provisioner.download.vhd_footer import FOOTER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_DECODER = msgspec.json.Decoder(Entry)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (sha256 TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS urls (url TEXT PRIMARY KEY, version TEXT NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chunk_sums (sha256 TEXT PRIMARY KEY, chunk INTEGER NOT NULL, sums BLOB NOT NULL);
"""
_NAME = re.compile(r".+-([0-9a-f]{12})(\.\w+){1,3}")


class Index:
    """The database. Every change is on disk when its method returns. Methods raise CacheError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        path = directory / ".lvp" / "index.sqlite"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with _translated():
            self._db = _open(path)

    def load(self) -> tuple[dict[str, Entry], dict[str, tuple[str, str]]]:
        """Return entries by sha256, and (version, sha256) by url. Drop entries whose file is missing or modified."""
        entries, lost = {}, []
        with _translated():
            for sha256, body in self._db.execute("SELECT sha256, body FROM entries").fetchall():
                entry = _decode(body)
                if entry is not None and is_intact(self._directory, entry):
                    entries[sha256] = entry
                else:
                    lost.append(sha256)
            urls = {url: (ver, sha) for url, ver, sha in self._db.execute("SELECT url, version, sha256 FROM urls")}
        self.remove(lost)
        with _translated(), self._db:  # from entries that were removed while they were verified
            self._db.execute("DELETE FROM chunk_sums WHERE sha256 NOT IN (SELECT sha256 FROM entries)")
        return entries, {url: known for url, known in urls.items() if known[1] in entries}

    def put(self, entry: Entry, url: str | None = None, version: str | None = None, sums: bytes | None = None) -> None:
        """Add or update an entry, and record that ``url`` served it as ``version``.

        ``sums``: its chunk checksums.
        """
        body = msgspec.json.encode(entry).decode()
        with _translated(), self._db:
            self._db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (entry.sha256, body))
            if url is not None and version is not None:
                self._db.execute("INSERT OR REPLACE INTO urls VALUES (?, ?, ?)", (url, version, entry.sha256))
            if sums is not None:
                self._db.execute("INSERT OR REPLACE INTO chunk_sums VALUES (?, ?, ?)", (entry.sha256, CHUNK, sums))

    def put_sums(self, sha256: str, sums: bytes) -> None:
        """Store an entry's chunk checksums."""
        with _translated(), self._db:
            self._db.execute("INSERT OR REPLACE INTO chunk_sums VALUES (?, ?, ?)", (sha256, CHUNK, sums))

    def sums(self, sha256: str) -> bytes | None:
        """Return an entry's chunk checksums; None if there are none for the current chunk size."""
        query = "SELECT sums FROM chunk_sums WHERE sha256 = ? AND chunk = ?"
        with _translated():
            row = self._db.execute(query, (sha256, CHUNK)).fetchone()
        return None if row is None else bytes(row[0])

    def remove(self, digests: Iterable[str]) -> None:
        """Delete entries by sha256, with their urls and checksums."""
        rows = [(sha256,) for sha256 in digests]
        with _translated(), self._db:
            self._db.executemany("DELETE FROM entries WHERE sha256 = ?", rows)
            self._db.executemany("DELETE FROM urls WHERE sha256 = ?", rows)
            self._db.executemany("DELETE FROM chunk_sums WHERE sha256 = ?", rows)

    def close(self) -> None:
        self._db.close()

    def adopt(self, known: dict[str, Entry], now: float) -> list[Entry]:
        """Add published files that are missing in the database, after hashing them; return their entries."""
        names = {entry.file_name for entry in known.values()}
        adopted = []
        for path in sorted(self._directory.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and path.name not in names and path.is_file() and not path.is_symlink():
                entry, sums = _entry_of(path, now)
                if entry is not None and entry.sha256.startswith(match[1]):
                    self.put(entry, sums=sums)
                    adopted.append(entry)
        return adopted


def is_intact(directory: Path, entry: Entry) -> bool:
    """Whether the entry's file is the published one: a regular file with the recorded size and mtime."""
    try:
        return is_file_of(entry, os.lstat(directory / entry.file_name))
    except OSError:
        return False


def is_file_of(entry: Entry, found: os.stat_result) -> bool:
    """Whether ``found`` is the status of the published file."""
    return stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise CacheFullError("the cache's file system is full") from error
        raise CacheError(f"the cache's index cannot be used: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """Open the database; recreate it if it is corrupt. A locked or full one is not corrupt."""
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # else it would be replayed into the new one
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.executescript(_SCHEMA)
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    except BaseException:
        db.close()
        raise
    return db


def _decode(body: str) -> Entry | None:
    try:
        return _DECODER.decode(body)
    except msgspec.MsgspecError:  # written by another version of the service
        return None


def end_of(fd: int) -> bytes:
    """Return the last bytes of a file, where a fixed VHD has its footer."""
    return os.pread(fd, FOOTER, max(0, os.fstat(fd).st_size - FOOTER))


def _entry_of(path: Path, now: float) -> tuple[Entry | None, bytes]:
    digest, summer, inspection, info = hashlib.sha256(), ChunkSummer(), FileInspection(), None
    with path.open("rb") as file:
        status, end = os.fstat(file.fileno()), end_of(file.fileno())
        try:
            while chunk := file.read(1024 * 1024):
                digest.update(chunk)
                summer.feed(memoryview(chunk))
                info = info or inspection.feed(chunk, last=False)
            info = info or inspection.feed(b"", last=True)
        except ProvisionerError:
            return None, b""
    if info is None:
        return None, b""
    return new_entry(path.name, "", {"sha256": digest.hexdigest()}, info, status, now, end), summer.finish()
