"""An opener that runs between the file target's last check and its change."""

import os
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

_TIMEOUT = 10.0


class Opener:
    """Opens a file in a thread, as a process would: the open waits while a lease is held."""

    def __init__(self, path):
        self.path = path
        self.fd = None
        self._inode = Path(path).stat().st_ino
        self._thread = threading.Thread(target=self._open)

    def start(self):
        """Return when the file is open, or when its open waits in the kernel for a lease."""
        self._thread.start()
        while self._thread.is_alive() and not self._waits():
            self._thread.join(0.001)

    def inode(self):
        """Wait for the open to return; return the inode of the opened file, or None if the file was missing."""
        self._thread.join(_TIMEOUT)
        assert not self._thread.is_alive(), "the open did not return"
        return None if self.fd is None else os.fstat(self.fd).st_ino

    def close(self):
        self.inode()
        if self.fd is not None:
            os.close(self.fd)

    def _open(self):
        with suppress(FileNotFoundError):
            self.fd = os.open(self.path, os.O_RDWR)

    def _waits(self):
        lines = Path("/proc/locks").read_text().splitlines()
        return any("BREAKING" in line and f":{self._inode} " in line for line in lines)


@contextmanager
def opened_before_rename(volume, how=None):
    """Open ``volume`` right before the first rename of its file, or over it; ``how`` is the path to open."""
    rename, opener = os.rename, Opener(how or volume.path)

    def gated(source, target):
        if str(volume.path) in {str(source), str(target)}:
            os.rename = rename
            opener.start()
        rename(source, target)

    os.rename = gated
    try:
        yield opener
    finally:
        os.rename = rename
        opener.close()
