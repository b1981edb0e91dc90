"""The files of partial downloads and uploads. Left-over ones are resumed if that is safe, and removed otherwise.

A partial file's name contains digests of its url, version and content key, and the boot in which it was written. After
a power failure, a file may be longer than what reached the disk, so only files of the current boot are resumed.
Left-over files count as used space until they are removed. Blocking: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.contracts.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds. A download that was not resumed within a day is unlikely to be resumed.
MAX_AGE = 86400.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{32})\.([^.]+)\.[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a download. ``key`` identifies its bytes; None if a later download could not verify them."""

    url: str
    version: str | None
    key: str | None

    @property
    def prefix(self) -> str:
        """Return the start of the file's name."""
        return f"{_digest(self.url, 16)}-{_digest(self.version or '', 16)}-{_digest(self.key or '', 32)}"


@dataclass(frozen=True, slots=True)
class _Remains:
    """A left-over file that no download uses."""

    path: Path
    size: int
    written_at: float
    resumable: bool


class Partials:
    """The folder of partial files. ``report(what, name)`` is called for each file that is removed or cannot be.

    Thread-safe.
    """

    def __init__(self, folder: Path, report: Callable[[str, str], None]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._report = report
        self._boot = _boot_id()
        self._lock = threading.Lock()
        self._remains: dict[str, _Remains] = {}
        for path in folder.iterdir():
            match, status = _NAME.fullmatch(path.name), path.lstat()
            # An empty file is one that could not be removed earlier.
            resumable = match is not None and match[4] == self._boot and status.st_size > 0
            self._remains[path.name] = _Remains(path, status.st_size, status.st_mtime, resumable)
        self.sweep_old()

    @property
    def left_over(self) -> int:
        """Return the bytes of left-over files."""
        with self._lock:
            return sum(one.size for one in self._remains.values())

    def open(self, content: Content, size: int | None) -> tuple[int, Path, int]:
        """Open a file for a download of ``size`` bytes; return its descriptor, its path and the bytes already there.

        Left-over files of other versions of the same url are removed.
        """
        prefix = content.prefix
        url, version = prefix.split("-")[:2]
        # Also retry files that could not be removed before.
        self._remove_those(lambda one: not one.resumable or _is_superseded(one.path.name, url, version))
        path = self._claim(prefix) if content.key is not None else None
        if path is not None and (resumed := self._resume(path, size)) is not None:
            return resumed
        boot = self._boot if content.key is not None else "0"
        path = self._folder / f"{prefix}.{boot}.{secrets.token_hex(4)}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path, 0

    def kept(self, content: Content) -> int:
        """Return the bytes that ``open`` would find of this content; 0 if there are none."""
        with self._lock:
            found = (one for name, one in self._remains.items() if name.startswith(f"{content.prefix}."))
            return max((one.size for one in found if one.resumable), default=0)

    def _resume(self, path: Path, size: int | None) -> tuple[int, Path, int] | None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self._report(f"a partial download cannot be resumed ({error.strerror})", path.name)
            self._note(path, resumable=False)
            return None
        if size is None or os.fstat(fd).st_size > size:
            os.ftruncate(fd, 0)
        return fd, path, os.fstat(fd).st_size

    def _note(self, path: Path, *, resumable: bool) -> None:
        """Record a file, if it exists, as left over."""
        with suppress(FileNotFoundError):
            status = path.lstat()
            with self._lock:
                self._remains[path.name] = _Remains(path, status.st_size, status.st_mtime, resumable)

    def _claim(self, prefix: str) -> Path | None:
        with self._lock:
            for name, one in self._remains.items():
                if one.resumable and name.startswith(f"{prefix}."):
                    del self._remains[name]
                    return one.path
        return None

    def keep(self, path: Path) -> None:
        """Keep a file for a later download to resume, or for a sweep to remove."""
        self._note(path, resumable=True)

    def remove(self, path: Path) -> None:
        """Remove a file. Raises CacheError if that fails; later sweeps then try again."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):  # free its space, and keep the next start from resuming it
                os.truncate(path, 0)
            self._note(path, resumable=False)
            raise CacheError(f"the partial file {path.name} cannot be removed: {error.strerror}") from error

    def sweep(self, wanted: int) -> int:
        """Remove left-over files, oldest first, until ``wanted`` bytes are freed; return the bytes freed."""
        with self._lock:
            by_age = sorted(self._remains.values(), key=lambda one: one.written_at)
        freed = 0
        for one in by_age:
            if freed >= wanted:
                break
            freed += self._remove(one)
        return freed

    def sweep_all(self) -> int:
        """Remove all left-over files; return the bytes freed."""
        return self._remove_those(lambda _one: True)

    def sweep_old(self) -> int:
        """Remove left-over files that are too old or not resumable; return the bytes freed."""
        oldest = time.time() - MAX_AGE
        return self._remove_those(lambda one: not one.resumable or one.written_at < oldest)

    def _remove_those(self, chosen: Callable[[_Remains], bool]) -> int:
        with self._lock:
            victims = [one for one in self._remains.values() if chosen(one)]
        return sum(self._remove(one) for one in victims)

    def _remove(self, one: _Remains) -> int:
        """Remove a left-over file, unless a download has claimed it in the meantime; return the bytes freed."""
        name = one.path.name
        with self._lock:
            if self._remains.pop(name, None) is None:
                return 0
        try:
            one.path.unlink(missing_ok=True)
        except OSError as error:
            with self._lock:
                self._remains[name] = one
            self._report(f"a partial download cannot be removed ({error.strerror})", name)
            return 0
        self._report("removed a partial download", name)
        return one.size

    def scratch(self) -> int:
        """Return the descriptor of a new unnamed file, which is freed when it is closed, even by a crash."""
        return os.open(self._folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)


def _is_superseded(name: str, url: str, version: str) -> bool:
    return name.startswith(f"{url}-") and not name.startswith(f"{url}-{version}-")


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()[:8]
    except OSError:  # a random id, so that no download is resumed after a restart
        return secrets.token_hex(4)
