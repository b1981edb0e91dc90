"""A file that grows from its beginning. Owns the mark up to which bytes are there, and wakes those who wait for more.

Written by the download's thread, read by the hashing thread, by converters' threads and by tasks in the loop.
"""

from __future__ import annotations

import threading

import trio

from provisioner.contracts.errors import CacheFullError, CorruptImageError

# Waiters in the loop are woken when this much more is there; a wake-up per network read would keep the loop busy.
WAKE_STEP = 2 * 1024 * 1024


class GrowingFile:
    """Bytes ``[0, available)`` are in the file behind ``fd``. Make it inside the loop; the maker owns ``fd``."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd = fd
        self.size: int | None = None  # set at the end
        self.limit = limit  # bytes there is room for; a body that goes on beyond it is given up
        self.hashed = 0  # the mark of whoever hashes, now and then; it needs nothing before it any more
        self._available = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._wanted = 0  # the mark a thread waits for: waking it at each network read would have it run all the time
        self._lot = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()
        self._woken_at = 0

    @property
    def available(self) -> int:
        """Every byte before this offset is in the file."""
        return self._available

    def advance(self, end: int) -> None:
        """Bytes up to ``end`` are written. From any thread; cheap. Raises CacheFullError past the limit."""
        if end > self.limit:
            raise CacheFullError(f"the image goes on beyond the {self.limit} bytes the cache has room for")
        with self._changed:
            self._available = max(self._available, end)
            if self._available >= self._wanted:
                self._changed.notify_all()
        if end - self._woken_at >= WAKE_STEP:
            self._woken_at = end
            self._wake()

    def finish(self) -> None:
        """The file is complete as far as ``available`` goes."""
        with self._changed:
            self.size = self._available
            self._changed.notify_all()
        self._wake()

    def fail(self, error: BaseException) -> None:
        """No more bytes will come. Whoever waits gets the error; the first one counts."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._wake()

    def check(self) -> None:
        """Raise what ended the download, if anything did. From any thread."""
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        try:
            self._token.run_sync_soon(self._lot.unpark_all)
        except trio.RunFinishedError:
            return

    async def arrived(self, start: int, stop: int) -> None:
        """Return when ``[start, stop)`` is in the file. Raises what ended the download."""
        del start  # the file is filled in order
        while self._available < stop:
            if self.size is not None:
                raise CorruptImageError(f"the image ends at byte {self.size}, but byte {stop - 1} of it is needed")
            if self._error is not None:
                raise self._error
            await self._lot.park()

    async def completed(self) -> None:
        """Return when the whole file is there. Raises what ended the download."""
        while self.size is None:
            if self._error is not None:
                raise self._error
            await self._lot.park()

    def wait_beyond(self, offset: int, step: int) -> int:
        """Block the one thread that follows until ``step`` bytes beyond ``offset`` are there, or all are. The new mark.

        Raises what ended the download, however much of it there is still to read.
        """
        with self._changed:
            while self._error is None and self._available < offset + step and self.size is None:
                self._wanted = offset + step
                self._changed.wait()
            if self._error is not None:
                raise self._error
            return self._available
