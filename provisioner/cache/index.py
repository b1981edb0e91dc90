"""The cache's index: entries and the urls that led to them, in SQLite beside the images, whole in memory.

Losing the database loses nothing: it is made again from the files, whose names carry the digest's beginning and whose
bytes are hashed once more. Blocking: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import stat
from typing import TYPE_CHECKING

import msgspec

from provisioner.cache.entry import Entry
from provisioner.contracts.errors import ProvisionerError
from provisioner.download.inspection import Inspection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (sha256 TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS urls (url TEXT PRIMARY KEY, version TEXT NOT NULL, sha256 TEXT NOT NULL);
"""
_NAME = re.compile(r".+-([0-9a-f]{12})\.\w+")


class Index:
    """Reads and writes the database; every change is on disk when its method returns."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        path = directory / ".lvp" / "index.sqlite"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        self._db = _open(path)

    def load(self) -> tuple[dict[str, Entry], dict[str, tuple[str, str]]]:
        """Entries by sha256, and (version, sha256) by url; entries whose file is gone or changed are dropped."""
        entries = {}
        for (body,) in self._db.execute("SELECT body FROM entries").fetchall():
            entry = msgspec.json.decode(body, type=Entry)
            if is_intact(self._directory, entry):
                entries[entry.sha256] = entry
            else:
                self.remove(entry.sha256)
        urls = {url: (version, sha) for url, version, sha in self._db.execute("SELECT url, version, sha256 FROM urls")}
        return entries, {url: known for url, known in urls.items() if known[1] in entries}

    def put(self, entry: Entry) -> None:
        """Add or change an entry."""
        with self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?)", (entry.sha256, msgspec.json.encode(entry).decode())
            )

    def put_url(self, url: str, version: str, sha256: str) -> None:
        """Remember that ``url`` led to that content while the server called it ``version``."""
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO urls VALUES (?, ?, ?)", (url, version, sha256))

    def remove(self, sha256: str) -> None:
        """Forget an entry and the urls that led to it."""
        with self._db:
            self._db.execute("DELETE FROM entries WHERE sha256 = ?", (sha256,))
            self._db.execute("DELETE FROM urls WHERE sha256 = ?", (sha256,))

    def close(self) -> None:
        self._db.close()

    def adopt(self, known: dict[str, Entry], now: float) -> list[Entry]:
        """Entries for published files the database does not know, each hashed anew."""
        names = {entry.file_name for entry in known.values()}
        adopted = []
        for path in sorted(self._directory.iterdir()):
            match = _NAME.fullmatch(path.name)
            if match and path.name not in names and path.is_file() and not path.is_symlink():
                entry = _entry_of(path, now)
                if entry is not None and entry.sha256.startswith(match[1]):
                    self.put(entry)
                    adopted.append(entry)
        return adopted


def is_intact(directory: Path, entry: Entry) -> bool:
    """Whether the file is the one that was published: a regular file of that size and time of change."""
    try:
        info = os.lstat(directory / entry.file_name)
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_size == entry.size and info.st_mtime_ns == entry.mtime_ns


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    db.executescript(_SCHEMA)
    return db


def _entry_of(path: Path, now: float) -> Entry | None:
    digest, inspection, info = hashlib.sha256(), Inspection(), None
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        while chunk := file.read(1024 * 1024):
            digest.update(chunk)
            try:
                info = info or inspection.feed(chunk, last=False)
            except ProvisionerError:
                return None
    info = info or inspection.feed(b"", last=True)
    if info is None:
        return None
    return Entry(
        sha256=digest.hexdigest(),
        sha512=None,
        file_name=path.name,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        format=info.format,
        virtual_size=info.virtual_size if info.virtual_size is not None else status.st_size,
        url="",
        added_at=now,
        last_used_at=now,
    )


def discard_partials(directory: Path, report: Callable[[str], None]) -> None:
    """Remove what downloads of an earlier life left behind."""
    partial = directory / ".lvp" / "partial"
    partial.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in partial.iterdir():
        path.unlink()
        report(path.name)
