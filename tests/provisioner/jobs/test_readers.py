"""The connections that only read: none stays open behind a closed store."""

import sqlite3
import threading

import trio

from provisioner.jobs import readers as readers_module
from provisioner.jobs.readers import Readers


async def test_close_while_an_abandoned_query_runs(tmp_path, monkeypatch):
    """Its client has gone; the thread cannot be interrupted, and its connection is closed when it ends."""
    begun, gate, closed = threading.Event(), threading.Event(), threading.Event()

    class Watched(sqlite3.Connection):
        def close(self):
            super().close()
            closed.set()

    def connect(path):
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Watched)

    def query(_db):
        begun.set()
        gate.wait()

    monkeypatch.setattr(readers_module, "connect", connect)
    readers = Readers(1, 1)
    readers.open(tmp_path / "jobs.sqlite")
    with trio.CancelScope() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readers.run, query)
            await trio.to_thread.run_sync(begun.wait)
            client.cancel()
    readers.close()
    assert not closed.is_set()
    gate.set()
    assert await trio.to_thread.run_sync(closed.wait, 30)
