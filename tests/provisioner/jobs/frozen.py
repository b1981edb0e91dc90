"""A store on a frozen disk: the writer's thread waits before or after a statement until it is released."""

from __future__ import annotations

import threading


class FrozenConnection:
    """The writer's connection; ``freeze`` holds the next statement that starts with ``at``."""

    def __init__(self, store):
        self._db, store._db = store._db, self
        self._at = None
        self._after = False
        self.reached = threading.Event()
        self._thaw = threading.Event()

    def freeze(self, at="COMMIT", *, after=False):
        """``after``: the statement runs and then hangs, like a commit in its fsync."""
        self.reached.clear()
        self._thaw.clear()
        self._at, self._after = at, after

    def thaw(self):
        self._at = None
        self._thaw.set()

    def execute(self, sql, *values):
        held, self._at = self._at, None if self._at and sql.startswith(self._at) else self._at
        if held is None or not sql.startswith(held):
            return self._db.execute(sql, *values)
        if self._after:
            result = self._db.execute(sql, *values)
            self._wait()
            return result
        self._wait()
        return self._db.execute(sql, *values)

    def _wait(self):
        self.reached.set()
        assert self._thaw.wait(60), "nothing thawed the store"

    def __getattr__(self, name):
        return getattr(self._db, name)
