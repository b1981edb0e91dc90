"""Jobs on disk: SQLite, one row a job. A method that has returned has its change on stable storage.

All methods are for the loop; the database is worked on in one thread at a time.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from provisioner.contracts.errors import UnavailableError
from provisioner.jobs.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY,
    seq INTEGER,
    status TEXT NOT NULL,
    volume_name TEXT,
    correlation_id TEXT,
    idempotency_key TEXT,
    updated_at REAL NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_status ON jobs (status);
CREATE INDEX IF NOT EXISTS jobs_key ON jobs (idempotency_key);
CREATE INDEX IF NOT EXISTS jobs_seq ON jobs (seq);
"""


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list; None means any."""

    status: str | None = None
    volume_name: str | None = None
    correlation_id: str | None = None


class JobStore:
    """Opened once, by the daemon that owns the state directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._thread = trio.CapacityLimiter(1)

    async def open(self) -> None:
        """Open or make the database. Raises UnavailableError."""
        await self._run(self._open)

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, check_same_thread=False)
        try:
            # A job that was accepted must survive a power cut.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
            self._path.chmod(0o600)
        except BaseException:
            db.close()
            raise
        self._db = db

    async def put(self, job: Job) -> None:
        """Insert or replace."""
        await self._run(self._put, job)

    def _put(self, job: Job) -> None:
        db = self._connection()
        with db:
            db.execute(
                "INSERT INTO jobs VALUES (?1, (SELECT 1 + ifnull(max(seq), 0) FROM jobs), ?2, ?3, ?4, ?5, ?6, ?7)"
                " ON CONFLICT (job_id) DO UPDATE SET status = ?2, updated_at = ?6, body = ?7",
                (
                    job.job_id,
                    job.status.value,
                    job.spec.volume_name,
                    job.spec.correlation_id,
                    job.idempotency_key,
                    job.updated_at,
                    msgspec.json.encode(job).decode(),
                ),
            )

    async def get(self, job_id: str) -> Job | None:
        """The job of that id."""
        return await self._run(self._first, "SELECT body FROM jobs WHERE job_id = ?", job_id)

    async def by_key(self, idempotency_key: str) -> Job | None:
        """The newest job that was submitted with that key."""
        return await self._run(
            self._first, "SELECT body FROM jobs WHERE idempotency_key = ? ORDER BY seq DESC LIMIT 1", idempotency_key
        )

    def _first(self, query: str, value: str) -> Job | None:
        row = self._connection().execute(query, (value,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=Job)

    async def unfinished(self) -> list[Job]:
        """Pending and running jobs, oldest first."""
        return await self._run(self._unfinished)

    def _unfinished(self) -> list[Job]:
        rows = self._connection().execute("SELECT body FROM jobs WHERE status IN ('pending', 'running') ORDER BY seq")
        return [msgspec.json.decode(body, type=Job) for (body,) in rows]

    async def page(self, wanted: JobFilter, offset: int, limit: int) -> tuple[list[Job], int]:
        """One page, newest first, and how many there are in all."""
        return await self._run(self._page, wanted, offset, limit)

    def _page(self, wanted: JobFilter, offset: int, limit: int) -> tuple[list[Job], int]:
        conditions = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in conditions) or "1"
        values = tuple(conditions.values())
        db = self._connection()
        (count,) = db.execute(f"SELECT count(*) FROM jobs WHERE {where}", values).fetchone()  # noqa: S608 - our names
        rows = db.execute(
            f"SELECT body FROM jobs WHERE {where} ORDER BY seq DESC LIMIT ? OFFSET ?",  # noqa: S608
            (*values, limit, offset),
        )
        return [msgspec.json.decode(body, type=Job) for (body,) in rows], count

    async def forget_before(self, when: float) -> None:
        """Remove ended jobs last changed before ``when``."""
        await self._run(self._forget_before, when)

    def _forget_before(self, when: float) -> None:
        db = self._connection()
        with db:
            db.execute("DELETE FROM jobs WHERE status NOT IN ('pending', 'running') AND updated_at < ?", (when,))

    async def check(self) -> str | None:
        """Why the store cannot be used now, or None."""
        try:
            await self._run(lambda: self._connection().execute("SELECT count(*) FROM sqlite_master").fetchone())
        except UnavailableError as error:
            return error.message
        return None

    async def aclose(self) -> None:
        """Close the database."""
        if self._db is not None:
            await self._run(self._db.close)

    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None, "the store is not open"
        return self._db

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        # Shielded by nature: a thread is waited for. So a change is either not begun or done.
        try:
            return await trio.to_thread.run_sync(work, *args, limiter=self._thread)
        except (sqlite3.Error, OSError) as error:
            raise UnavailableError(f"the job store {self._path} cannot be used: {error}") from error
