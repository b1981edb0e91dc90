"""Downloads that an earlier life of the daemon did not finish, and which of them may be carried on.

A partial file's name says what it is of (a digest of url, version and checksum) and since which boot it is written:
after a power cut a file can be longer than what reached the disk, so only files of this boot are carried on.
Blocking: call it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A download nobody came back for in a day is nobody's.
MAX_AGE = 86400.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Partials:
    """The folder of files being downloaded. ``report`` hears the name of each that is removed."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._boot = _boot_id()
        self._left_over: dict[str, Path] = {}
        for path in folder.iterdir():
            key, _, rest = path.name.partition(".")
            if rest.startswith(f"{self._boot}.") and path.stat().st_mtime > time.time() - MAX_AGE:
                self._left_over[key] = path
            else:
                path.unlink()
                report(path.name)

    def open(self, what: str | None, size: int | None) -> tuple[int, Path, int]:
        """A file to download ``size`` bytes into: its descriptor, its path, and how many of them are there already.

        ``what`` names the content for good (url, version and checksum); None where nothing does, and the file is
        then always a new one.
        """
        key = hashlib.sha256(what.encode()).hexdigest()[:32] if what is not None else "unnamed"
        path = self._left_over.pop(key, None)
        if path is not None:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            if size is None or os.fstat(fd).st_size > size:
                os.ftruncate(fd, 0)
            return fd, path, os.fstat(fd).st_size
        boot = self._boot if what is not None else "0"
        path = self._folder / f"{key}.{boot}.{secrets.token_hex(4)}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), path, 0

    def scratch(self) -> int:
        """The descriptor of a new file without a name: gone when it is closed, however that happens."""
        return os.open(self._folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()[:8]
    except OSError:  # then nothing is ever carried on
        return secrets.token_hex(4)
