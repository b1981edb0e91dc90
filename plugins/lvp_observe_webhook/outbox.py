"""The messages that wait for delivery, in an SQLite file: they survive a crash of the service and of the host.

Blocking; one thread at a time. The ids of the newest messages stay, so that a change is not put in twice.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# Ids that are remembered; the service compares at most the newest 1000 jobs, each with some three changes.
_REMEMBERED = 20_000
_TABLES = """
create table if not exists messages (
    number integer primary key autoincrement, id text not null unique, body blob not null, at real not null,
    tries integer not null default 0, due real not null
) strict;
create index if not exists messages_due on messages (due);
create table if not exists known (number integer primary key autoincrement, id text not null unique) strict;
create table if not exists began (at real not null) strict;
"""
_DELETE_OLDEST = "delete from messages where number in (select number from messages order by number limit ?)"


@dataclass(frozen=True, slots=True)
class Message:
    """A message: its id, body, the time of its change, and how often it was tried."""

    message_id: str
    body: bytes
    at: float
    tries: int = 0


class Outbox:
    """The outbox in ``path``, with room for ``most`` messages."""

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._most = most
        self._db: sqlite3.Connection | None = None

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect(self._path, timeout=2.0, check_same_thread=False, isolation_level=None)
            try:
                self._path.chmod(0o600)
                db.execute("pragma synchronous = full")
                db.executescript(_TABLES)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def begin(self, now: float) -> float:
        """Return when this outbox was first used; ends of jobs before that are no news."""
        db = self._opened()
        with _transaction(db):
            row = db.execute("select at from began").fetchone()
            if row is None:
                db.execute("insert into began values (?)", (now,))
        return float(row[0]) if row else now

    def add(self, messages: Iterable[Message]) -> int:
        """Add messages that are not known yet; return how many of the oldest had to go to make room."""
        db = self._opened()
        with _transaction(db):
            for one in messages:
                if db.execute("insert or ignore into known (id) values (?)", (one.message_id,)).rowcount:
                    row = (one.message_id, one.body, one.at, one.at)
                    db.execute("insert or ignore into messages (id, body, at, due) values (?, ?, ?, ?)", row)
            db.execute("delete from known where number <= (select max(number) from known) - ?", (_REMEMBERED,))
            over: int = db.execute("select count(*) from messages").fetchone()[0] - self._most
            if over > 0:
                db.execute(_DELETE_OLDEST, (over,))
        return max(0, over)

    def next(self) -> tuple[Message, float] | None:
        """Return the message to try next and when it is due; None if there is none."""
        query = "select id, body, at, tries, due from messages order by due, number limit 1"
        row = self._opened().execute(query).fetchone()
        return None if row is None else (Message(*row[:4]), row[4])

    def delay(self, message_id: str, due: float) -> None:
        """Note that a message was tried, and when it is due again."""
        self._opened().execute("update messages set tries = tries + 1, due = ? where id = ?", (due, message_id))

    def remove(self, message_id: str) -> None:
        """Remove a message that was delivered or given up."""
        self._opened().execute("delete from messages where id = ?", (message_id,))

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("begin immediate")
    try:
        yield
    except BaseException:
        db.execute("rollback")
        raise
    db.execute("commit")
