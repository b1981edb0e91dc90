"""A thread of its own for each sink of log lines: a sink that hangs blocks that thread and nothing else.

Lines wait in a bounded queue and keep their order. If the queue is full, or a write fails, lines are dropped and
counted; one notice stands in their place as soon as the sink takes lines again.
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

# Bytes that wait at most: some 10,000 lines, seconds of the busiest log.
ROOM = 4 * 1024 * 1024
# What a waiting line takes beside its own bytes.
_OVERHEAD = 200
# A write that takes longer than this many seconds hangs.
HUNG_AFTER = 5.0


@dataclass(slots=True)
class _Gap:
    """Stands in the queue where lines were dropped."""

    count: int


class LineWriter(Generic[T]):
    """Writes items in the order of ``put``. The thread is a daemon: a sink that hangs keeps no process alive.

    ``write`` blocks as long as it likes and raises OSError; ``size`` returns an item's bytes; ``notice`` makes the item
    that tells of a number of dropped ones; ``dropped`` is called, from any thread, with each number of dropped items.
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
        # Its lock is reentrant: a finalizer may log in the middle of ``put``.
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
        """Queue an item, or drop it. Never waits."""
        size = self._size(item) + _OVERHEAD
        with self._changed:
            # Once full, the queue has to drain by half: one gap with one notice rather than one for every other line.
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
        """Wait until everything is written, for ``seconds`` at most, and not again if the sink hung the last time."""
        with self._changed:
            if self._given_up:
                return False
            done = self._changed.wait_for(lambda: not self._waiting and self._busy_since is None, seconds)
            self._given_up = not done
        return done

    def close(self, seconds: float) -> bool:
        """Write what waits, for ``seconds`` at most, and end the thread. Returns whether nothing was left."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        with self._changed:
            left = sum(not isinstance(item, _Gap) for item in self._waiting)
            self._waiting.clear()
        self._dropped(left + 1)  # and the one that is being written
        return False

    def trouble(self) -> str | None:
        """Why lines do not reach the sink now, to follow its name in a sentence; None if they do."""
        since = self._busy_since
        if since is not None and (seconds := time.monotonic() - since) > HUNG_AFTER:
            return f"has taken nothing for {seconds:.0f} s"
        return None if self._failure is None else f"cannot be written: {self._failure}"

    # All below runs in the thread.

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
        """Return whether it was written."""
        try:
            write()
        except OSError as error:
            self._failure = error.strerror or str(error)
            return False
        except Exception as error:  # noqa: BLE001 - one item's fault must not end the thread
            self._failure = type(error).__name__
            return False
        self._failure = None
        return True
