"""The connections that only read: none stays open behind a closed store."""

import sqlite3
import threading
from contextlib import closing

import trio

from provisioner.jobs.readers import Readers


async def test_close_while_an_abandoned_query_runs(tmp_path):
    """Its client has gone; the thread cannot be interrupted, and its connection is closed when it ends."""
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as db:
        db.execute("CREATE TABLE jobs (id)")
    readers = Readers(1, 1)
    readers.open(tmp_path / "jobs.sqlite")
    begun, gate, connections = threading.Event(), threading.Event(), []

    def query(db):
        connections.append(db)
        begun.set()
        gate.wait()

    with trio.CancelScope() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readers.run, query)
            await trio.to_thread.run_sync(begun.wait)
            client.cancel()
    readers.close()
    gate.set()
    with trio.fail_after(30):
        while not _is_closed(connections[0]):  # noqa: ASYNC110 - the thread returns to a pool: its end is not told
            await trio.sleep(0.005)


def _is_closed(db):
    try:
        db.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return True
    return False
