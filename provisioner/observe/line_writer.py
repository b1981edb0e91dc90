"""A writer thread for each sink of log lines, so that a hanging sink blocks only its own thread.

Lines wait in a bounded queue and keep their order. If the queue is full or a write fails, lines are dropped and
counted. Once the sink accepts lines again, one notice takes their place.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Limit of the queue in bytes: about 10,000 lines, seconds of the busiest log.
ROOM = 4 * 1024 * 1024
# Memory of a queued line in addition to its bytes.
_OVERHEAD = 200
# Seconds after which a write counts as hanging.
HUNG_AFTER = 5.0


@dataclass(slots=True)
class _Gap:
    """Marks the place in the queue where lines were dropped."""

    count: int


class LineWriter(Generic[T]):
    """A writer of items in the order of ``put``. The thread is a daemon, so a hanging sink keeps no process alive.

    ``write`` may block and may raise OSError. ``size`` returns an item's bytes. ``notice`` returns the item that
    reports a number of dropped items. ``dropped`` is called, from any thread, with each number of dropped items.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[T], None],
        size: Callable[[T], int],
        notice: Callable[[int], T],
        dropped: Callable[[int], None],
        room: int = ROOM,
    ) -> None:
        self._write, self._size, self._notice, self._dropped = write, size, notice, dropped
        self._room = room
        # Its lock is reentrant, because a finalizer may log during ``put``.
        self._changed = threading.Condition()
        self._waiting: deque[T | _Gap] = deque()
        self._used = 0
        self._full = False
        self._closing = False
        self._busy_since: float | None = None
        self._given_up = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"{name} writer", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue an item, or drop it if the queue is full. Never blocks."""
        size = self._size(item) + _OVERHEAD
        with self._changed:
            # A full queue must drain by half first, which gives one gap instead of one for every other line.
            self._full = self._used + size > self._room or (self._full and self._used > self._room // 2)
            taken = not self._full and not self._closing
            if taken:
                self._waiting.append(item)
                self._used += size
                self._changed.notify_all()
            elif self._waiting and isinstance(last := self._waiting[-1], _Gap):
                last.count += 1
            else:
                self._waiting.append(_Gap(1))
                self._changed.notify_all()
        if not taken:
            self._dropped(1)

    def flush(self, seconds: float) -> bool:
        """Wait until everything is written, for ``seconds`` at most. Do not wait if the previous flush timed out."""
        with self._changed:
            if self._given_up:
                return False
            done = self._changed.wait_for(lambda: not self._waiting and self._busy_since is None, seconds)
            self._given_up = not done
        return done

    def close(self, seconds: float) -> bool:
        """Write the queued items, for ``seconds`` at most, and end the thread. Returns whether all were written."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        with self._changed:
            left = sum(not isinstance(item, _Gap) for item in self._waiting)
            self._waiting.clear()
        self._dropped(left + 1)  # plus the one being written
        return False

    def trouble(self) -> str | None:
        """Return why the sink accepts no lines now, as a sentence without its subject; None if it does."""
        since = self._busy_since
        if since is not None and (seconds := time.monotonic() - since) > HUNG_AFTER:
            return f"has accepted nothing for {seconds:.0f} s"
        return None if self._failure is None else f"cannot be written: {self._failure}"

    # The methods below run in the writer thread.

    def _run(self) -> None:
        lost = 0
        while (item := self._next()) is not None:
            if isinstance(item, _Gap):
                lost += item.count
            if lost and self._try(partial(self._tell, lost)):
                lost = 0
            if not isinstance(item, _Gap) and not self._try(partial(self._write, item)):
                lost += 1
                self._dropped(1)

    def _next(self) -> T | _Gap | None:
        with self._changed:
            self._busy_since = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return None
            item = self._waiting.popleft()
            if not isinstance(item, _Gap):
                self._used -= self._size(item) + _OVERHEAD
            self._busy_since = time.monotonic()
            return item

    def _tell(self, count: int) -> None:
        self._write(self._notice(count))

    def _try(self, write: Callable[[], None]) -> bool:
        """Return whether the write succeeded."""
        try:
            write()
        except OSError as error:
            self._failure = error.strerror or str(error)
            return False
        except Exception as error:  # noqa: BLE001 - one bad item must not end the thread
            self._failure = type(error).__name__
            return False
        self._failure = None
        return True
