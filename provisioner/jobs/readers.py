"""Read-only connections beside the writer's, so that a submit never waits for a list. Has no queries."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import trio

from provisioner.contracts.errors import UnavailableError
from provisioner.jobs.database import connect

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

# Seconds until a query fails because the database does not answer: clients commonly give up after 30.
TIMEOUT = 10.0
# Seconds that one query may run. The slowest one takes 0.1 s with a million jobs.
_QUERY_TIME = 5.0


class Readers:
    """A pool of ``count`` connections. ``queue`` more queries may wait; further ones are refused at once."""

    def __init__(self, count: int, queue: int) -> None:
        self._limiter = trio.CapacityLimiter(count)
        self._queue = queue
        self._idle: deque[sqlite3.Connection] = deque()
        self._returning = threading.Lock()
        self._closed = False

    def open(self, path: Path) -> None:
        """Connect. Blocks; raises sqlite3.Error."""
        self._closed = False
        for _ in range(int(self._limiter.total_tokens)):
            self._idle.append(connect(path))

    def close(self) -> None:
        """Close the idle connections now, and those of abandoned queries when these end. Blocks."""
        with self._returning:
            self._closed = True
            while self._idle:
                self._idle.pop().close()

    async def run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``query`` in a thread, in one read transaction. It only reads, so it may be abandoned.

        Raises UnavailableError if too many queries wait already or the database does not answer, and sqlite3.Error.
        """
        if self._limiter.statistics().tasks_waiting >= self._queue:
            raise UnavailableError("too many queries of the job history are waiting; try again later")
        with trio.move_on_after(TIMEOUT):
            return await trio.to_thread.run_sync(self._query, query, limiter=self._limiter, abandon_on_cancel=True)
        raise UnavailableError(f"the job store did not answer within {TIMEOUT:g} s")

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        db = self._idle.pop()
        try:
            end = time.monotonic() + _QUERY_TIME
            db.set_progress_handler(lambda: time.monotonic() > end, 200_000)
            db.execute("BEGIN")
            try:
                return query(db)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        finally:
            with self._returning:
                if self._closed:
                    db.close()
                else:
                    self._idle.append(db)
