"""Jobs on disk: SQLite, one row per job. When a method returns, its change is on stable storage.

Call all methods from the loop. Changes run one at a time, in one thread and connection. Lists and look-ups have threads
and connections of their own, so no change waits for them.

A thread that hangs on a frozen disk cannot be interrupted. So a change is abandoned when its caller is cancelled: it
either never starts, or may still be made later, but before any newer change. A new job is withdrawn in that case, see
``add``; all other changes may safely come late.
"""

from __future__ import annotations

import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio

from provisioner.contracts.cancel_shield import ShieldExpiredError, shielded
from provisioner.contracts.errors import UnavailableError
from provisioner.jobs import history, record
from provisioner.jobs.database import is_damage, open_database, suspect
from provisioner.jobs.history import JobFilter
from provisioner.jobs.readers import TIMEOUT, Readers
from provisioner.jobs.service_clock import ServiceClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from provisioner.jobs.job import Job

__all__ = ["JobFilter", "JobStore"]

log = structlog.get_logger(__name__)
T = TypeVar("T")

# Pages that skip more jobs than this run one at a time, so that they do not delay cheap ones.
_DEEP = 10_000
# Seconds for which a write probe's result is reused: any client may ask for readiness, at any rate.
_PROBE_EVERY = 5.0


class _Offer:
    """A new job on its way to the disk. The thread that comes first decides once whether it is stored or withdrawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored: bool | None = None

    def decide(self, *, stored: bool) -> bool:
        """Decide unless that is done already; return whether the job counts as stored."""
        with self._lock:
            if self._stored is None:
                self._stored = stored
            return self._stored


class JobStore:
    """The job store. Only the daemon that owns the state directory opens it."""

    def __init__(self, path: Path, clock: ServiceClock | None = None) -> None:
        self._path = path
        self._clock = clock or ServiceClock()
        self._db: sqlite3.Connection | None = None
        self._files: dict[Path, tuple[int, int]] = {}
        self._writing = trio.CapacityLimiter(1)
        self._lookups = Readers(1, queue=256)
        self._lists = Readers(2, queue=64)
        self._deep = Readers(1, queue=4)
        self._withdrawn: set[str] = set()
        """Ids of jobs that may be on disk although their client got an error."""
        self._probing = trio.Lock()
        self._probed: tuple[float, str | None] = (-_PROBE_EVERY, None)

    def trusted_wall(self) -> float | None:
        """Return the wall clock, None while it may be wrong. See ServiceClock."""
        return self._clock.trusted_wall()

    @property
    def folder(self) -> Path:
        """Return the folder of the database."""
        return self._path.parent

    async def open(self) -> None:
        """Open or create the database. Raises UnavailableError."""
        await self._translated(lambda: trio.to_thread.run_sync(self._open, limiter=self._writing))

    def _open(self) -> None:
        db = self._db = open_database(self._path)
        try:
            (seconds, wall), (trusted_from, _) = db.execute("SELECT seconds, wall FROM service_clock ORDER BY id")
            self._clock.resume(seconds, wall, trusted_from)
            self._transact(lambda _: None)  # the first write creates the write-ahead log
            for name in (self._path.name, f"{self._path.name}-wal"):
                path = self._path.with_name(name)
                if path.exists():
                    self._files[path] = _identity(path)
            for readers in (self._lookups, self._lists, self._deep):
                readers.open(self._path)
        except BaseException:
            self._close()
            raise

    # --- changes ---

    async def add(self, job: Job) -> None:
        """Insert a new job, even if the caller is cancelled. Raises UnavailableError if it is not stored in time.

        In that case the job is withdrawn: if it reaches the disk later, the same thread removes it before it reads or
        writes anything else. Only a crash between these two leaves it, and then it runs at the next start.
        """
        offer = _Offer()
        try:
            with shielded("store the job", TIMEOUT):
                await self._in_writer(partial(self._add, job, offer))
        except ShieldExpiredError:
            self._withdrawn.add(job.job_id)
            if not offer.decide(stored=False):
                raise
            self._withdrawn.discard(job.job_id)  # it was stored just as the deadline passed
        except Exception:
            # A crash may bring back what a failed commit wrote, unless the next change deletes it.
            self._withdrawn.add(job.job_id)
            raise

    def _add(self, job: Job, offer: _Offer) -> None:
        self._transact(partial(self._insert, job=job))
        if not offer.decide(stored=True):
            self._withdrawn.add(job.job_id)
            self._transact(lambda _: None)

    async def put(self, job: Job) -> None:
        """Insert or replace. A caller that is cancelled meanwhile has it done later, if at all, but in order."""
        await self._write(partial(self._insert, job=job))

    def _insert(self, db: sqlite3.Connection, job: Job) -> None:
        db.execute(
            "INSERT INTO jobs (job_id, status, target, volume_name, correlation_id, idempotency_key, aged_from, body)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            " ON CONFLICT (job_id) DO UPDATE SET status = ?2, aged_from = ?7, body = ?8",
            (
                job.job_id,
                job.status.value,
                job.spec.target,
                job.spec.volume_name,
                job.spec.correlation_id,
                job.idempotency_key,
                self._clock.now(),
                record.encode(job).decode(),
            ),
        )

    async def prune(self, keep: float, limit: int) -> int:
        """Remove up to ``limit`` jobs that ended more than ``keep`` seconds of service ago; return how many."""
        return await self._write(lambda db: history.prune(db, self._clock.now() - keep, limit))

    async def _set_aside(self, numbers: list[int]) -> None:
        """Set unreadable rows aside; if that fails, the next reader tries again."""
        try:
            with trio.fail_after(TIMEOUT):
                ids = await self._write(lambda db: history.set_aside(db, numbers))
        except (UnavailableError, trio.TooSlowError) as error:
            log.warning("unreadable jobs in the store cannot be set aside now", rows=numbers, reason=str(error))
            return
        log.error("jobs in the store could not be read and were set aside (table unreadable_jobs)", job_ids=ids)

    # --- queries ---

    async def get(self, job_id: str) -> Job | None:
        """Return the job with that id."""
        return await self._first(lambda: self._read(self._lookups, lambda db: history.one(db, job_id)))

    async def by_key(self, idempotency_key: str) -> Job | None:
        """Return the newest job submitted with that key. Runs in the writer's order, so it sees no withdrawn job."""
        with trio.move_on_after(TIMEOUT):
            return await self._first(lambda: self._in_writer(self._ask(history.newest_of_key, idempotency_key)))
        raise UnavailableError(f"the job store did not answer within {TIMEOUT:g} s")

    async def _first(self, ask: Callable[[], Awaitable[history.Rows]]) -> Job | None:
        jobs, unreadable = await ask()
        if unreadable:
            await self._set_aside(unreadable)
        return next((job for job in jobs if job.job_id not in self._withdrawn), None)

    async def unfinished(self) -> list[Job]:
        """Return pending and running jobs, oldest first."""
        jobs, unreadable = await self._read(self._lookups, history.unfinished)
        if unreadable:
            await self._set_aside(unreadable)
        return jobs

    async def newer(self, job: Job) -> str | None:
        """Return the id of a job for the same volume that was accepted after ``job``, or None."""
        return await self._read(self._lookups, lambda db: history.newer(db, job))

    async def order(self, job_id: str) -> int | None:
        """Return the job's place in the order of acceptance, or None if the store does not have it."""
        return await self._read(self._lookups, lambda db: history.order(db, job_id))

    async def page(self, wanted: JobFilter, offset: int, limit: int) -> tuple[list[Job], int]:
        """Return one page, newest first, and the total number of jobs."""
        readers = self._deep if offset > _DEEP else self._lists
        (jobs, unreadable), count = await self._read(readers, lambda db: history.page(db, wanted, offset, limit))
        if unreadable:
            await self._set_aside(unreadable)
            (jobs, _), count = await self._read(readers, lambda db: history.page(db, wanted, offset, limit))
        return [job for job in jobs if job.job_id not in self._withdrawn], count

    async def check(self) -> str | None:
        """Return why the store cannot be used now, or None. Writes at most once in a few seconds."""
        async with self._probing:
            at, verdict = self._probed
            return verdict if trio.current_time() - at < _PROBE_EVERY else await self._probe()

    async def _probe(self) -> str | None:
        try:
            with trio.fail_after(TIMEOUT):
                await self._write(lambda _: None)
            verdict: str | None = None
        except UnavailableError as error:
            verdict = error.message
        except trio.TooSlowError:
            verdict = f"the job store {self._path} did not answer within {TIMEOUT:g} s"
        self._probed = (trio.current_time(), verdict)
        return verdict

    async def aclose(self) -> None:
        """Close the database. A thread that hangs on the disk is abandoned."""
        with trio.move_on_after(TIMEOUT) as scope:
            await trio.to_thread.run_sync(self._close, limiter=self._writing, abandon_on_cancel=True)
        if scope.cancelled_caught:
            log.error("the job store did not answer and was left open", path=str(self._path))

    def _close(self) -> None:
        for readers in (self._lookups, self._lists, self._deep):
            readers.close()
        if self._db is not None:
            self._db.close()

    # --- threads ---

    def _ask(self, query: Callable[[sqlite3.Connection, str], T], value: str) -> Callable[[], T]:
        assert self._db is not None, "the store is not open"
        return partial(query, self._db, value)

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Make one change; it is on stable storage when this returns. Blocks."""
        assert self._db is not None, "the store is not open"
        db, withdrawn = self._db, tuple(self._withdrawn)
        db.execute("BEGIN IMMEDIATE")
        try:
            for job_id in withdrawn:
                db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))
            result = work(db)
            db.execute("REPLACE INTO service_clock VALUES (1, ?, ?), (2, ?, 0)", self._clock.saved())
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._check_files()
        self._withdrawn.difference_update(withdrawn)
        return result

    def _check_files(self) -> None:
        """Raise OSError if the files were removed or replaced since they were opened: writes to them would be lost."""
        for path, identity in self._files.items():
            try:
                now = _identity(path)
            except FileNotFoundError:
                now = None
            if now != identity:
                raise OSError(f"{path.name} was removed or replaced while the service runs; restart the service")

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._in_writer(partial(self._transact, work))

    async def _in_writer(self, work: Callable[[], T]) -> T:
        return await self._translated(
            lambda: trio.to_thread.run_sync(work, limiter=self._writing, abandon_on_cancel=True)
        )

    async def _read(self, readers: Readers, query: Callable[[sqlite3.Connection], T]) -> T:
        return await self._translated(lambda: readers.run(query))

    async def _translated(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                await trio.to_thread.run_sync(suspect, self._path)
            message = f"the job store {self._path} cannot be used: {error}"
            self._probed = (trio.current_time(), message)
            raise UnavailableError(message) from error


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
