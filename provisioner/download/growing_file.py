"""A file that is filled in order. Tracks how many bytes have arrived and wakes tasks and threads that wait for more.

The download's thread writes it; the hashing thread, converter threads and tasks in the loop read it.
"""

from __future__ import annotations

import threading

import trio

from provisioner.contracts import MIB
from provisioner.contracts.errors import CacheFullError, CorruptImageError

# Tasks are woken each time this many more bytes have arrived; a wake-up per network read would keep the loop busy.
WAKE_STEP = 2 * 1024 * 1024


class GrowingFile:
    """A file of which bytes ``[0, available)`` are written. Create it inside the loop; the creator owns ``fd``."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd = fd
        self.size: int | None = None  # set when the file is complete
        self.limit = limit  # bytes reserved for it; a longer body fails the download
        self.waiting_for: str | None = None  # the last temporary error, until bytes arrive again
        self.content_encoding: str | None = None  # how the server labelled the bytes
        self.mixed = False  # put together from responses that may be of different versions
        self.hashed = 0  # the hashing thread no longer needs the bytes before this offset; updated in steps
        self._available = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._wanted = 0  # the offset a thread waits for: do not wake it at each network read
        self._lot = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()
        self._woken_at = 0

    @property
    def available(self) -> int:
        """Return the offset up to which all bytes are in the file."""
        return self._available

    def advance(self, end: int) -> None:
        """Report that bytes up to ``end`` are written. Thread-safe; cheap. Raises CacheFullError past the limit."""
        if end > self.limit:
            raise CacheFullError(f"the image is larger than the {self.limit / MIB:.1f} MiB that the cache has room for")
        with self._changed:
            self._available = max(self._available, end)
            if self._available >= self._wanted:
                self._changed.notify_all()
        if end - self._woken_at >= WAKE_STEP:
            self._woken_at = end
            self._wake()

    def finish(self) -> None:
        """Report that the file is complete and ends at ``available``."""
        self.waiting_for = None
        with self._changed:
            self.size = self._available
            self._changed.notify_all()
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Report that no more bytes will come. All waiters get the error; only the first call counts."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._wake()

    def check(self) -> None:
        """Raise the download's error, if it failed. Thread-safe."""
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        try:
            self._token.run_sync_soon(self._lot.unpark_all)
        except trio.RunFinishedError:
            return

    async def arrived(self, start: int, stop: int) -> None:
        """Return when ``[start, stop)`` is in the file. Raises the download's error."""
        del start  # the file is filled in order
        while self._available < stop:
            if self.size is not None:
                raise CorruptImageError(f"the image ends at byte {self.size}, but byte {stop - 1} is needed")
            if self._error is not None:
                raise self._error
            await self._lot.park()

    async def completed(self) -> None:
        """Return when the file is complete. Raises the download's error."""
        while self.size is None:
            if self._error is not None:
                raise self._error
            await self._lot.park()

    def wait_beyond(self, offset: int, step: int) -> int:
        """Block until ``step`` bytes after ``offset`` have arrived or the file is complete; return ``available``.

        For one thread only. Raises the download's error at once, even if unread bytes remain.
        """
        with self._changed:
            while self._error is None and self._available < offset + step and self.size is None:
                self._wanted = offset + step
                self._changed.wait()
            if self._error is not None:
                raise self._error
            return self._available
