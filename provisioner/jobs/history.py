"""Queries of the jobs table: by id and key, pages, unfinished and old jobs. Blocking; no transactions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from provisioner.jobs import record

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from provisioner.jobs.job import Job

log = structlog.get_logger(__name__)

# The last second that RFC 3339 can express.
_LAST_TIME = 253402300799.0

# A page's jobs are found in an index alone; only the rows of the page are read.
_NAMES = (("volume_name", "jobs_volume", 1), ("correlation_id", "jobs_correlation", 2))


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list; None means any."""

    status: str | None = None
    volume_name: str | None = None
    correlation_id: str | None = None
    id_prefix: str | None = None


class Rows(NamedTuple):
    """The jobs that could be decoded, and the sequence numbers of the rows that could not."""

    jobs: list[Job]
    unreadable: list[int]


def read(rows: Iterable[tuple[int, bytes, bytes]]) -> Rows:
    """Decode jobs from rows of sequence number, id and body."""
    found = Rows([], [])
    for seq, job_id, body in rows:
        job = _decode(job_id, body)
        if job is None:
            found.unreadable.append(seq)
        else:
            found.jobs.append(job)
    return found


def _decode(job_id: bytes, body: bytes) -> Job | None:
    try:
        job = record.decode(body)
        sane = all(0 <= at <= _LAST_TIME for at in (job.created_at, job.updated_at))
        return job if sane and job.job_id.encode() == job_id else None
    except (ValueError, TypeError, RecursionError):
        return None


def one(db: sqlite3.Connection, job_id: str) -> Rows:
    """Return the job with that id."""
    return read(db.execute("SELECT seq, job_id, body FROM jobs WHERE job_id = ?", (job_id,)))


def newest_of_key(db: sqlite3.Connection, key: str) -> Rows:
    """Return the newest job with that idempotency key."""
    query = "SELECT seq, job_id, body FROM jobs WHERE idempotency_key = ? ORDER BY seq DESC LIMIT 1"
    return read(db.execute(query, (key,)))


def unfinished(db: sqlite3.Connection) -> Rows:
    """Return pending and running jobs, oldest first."""
    query = "SELECT seq, job_id, body FROM jobs WHERE status IN ('pending', 'running') ORDER BY seq"
    return read(db.execute(query))


def newer(db: sqlite3.Connection, job: Job) -> str | None:
    """Return the id of a job for the same volume that was accepted after ``job``."""
    row = db.execute(
        "SELECT job_id FROM jobs WHERE volume_name = ? AND target IS ? "
        "AND seq > (SELECT seq FROM jobs WHERE job_id = ?) ORDER BY seq DESC LIMIT 1",
        (job.spec.volume_name, job.spec.target, job.job_id),
    ).fetchone()
    return None if row is None else row[0].decode(errors="replace")


def order(db: sqlite3.Connection, job_id: str) -> int | None:
    """Return the sequence number of a job, or None if it is not in the store."""
    row = db.execute("SELECT seq FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
    return None if row is None else row[0]


def page(db: sqlite3.Connection, wanted: JobFilter, offset: int, limit: int) -> tuple[Rows, int]:
    """Return one page, newest first, and the total number of jobs."""
    source, values, count = _matching(db, wanted)
    if count <= offset:
        return Rows([], []), count
    limit = min(limit, count - offset)
    # Skip from the nearer end: in the second half of a long list the oldest are closer.
    backwards = offset > count // 2
    direction, skip = ("ASC", count - offset - limit) if backwards else ("DESC", offset)
    found = db.execute(f"{source} ORDER BY seq {direction} LIMIT ? OFFSET ?", (*values, limit, skip))
    numbers = [seq for (seq,) in found]
    marks = ",".join("?" * len(numbers))
    rows = db.execute(
        f"SELECT seq, job_id, body FROM jobs WHERE seq IN ({marks}) ORDER BY seq DESC",  # noqa: S608 - marks only
        numbers,
    )
    return read(rows), count


def _matching(db: sqlite3.Connection, wanted: JobFilter) -> tuple[str, tuple[str, ...], int]:
    """Return a query for the sequence numbers of the wanted jobs, its values, and their number.

    Each part of the query reads one range of an index in order; SQLite merges the parts while reading.
    """
    if wanted.id_prefix is not None:
        return _of_prefix(db, wanted, wanted.id_prefix)
    names = [
        (column, index, value, _counts(db, field, value, wanted.status))
        for column, index, field in _NAMES
        if (value := getattr(wanted, column)) is not None
    ]
    if not names:
        count = sum(_counts(db, 0, "", wanted.status).values())
        if wanted.status is None:
            return "SELECT seq FROM jobs INDEXED BY jobs_seq", (), count
        return "SELECT seq FROM jobs INDEXED BY jobs_status WHERE status = ?1", (wanted.status,), count
    # With two names, scan the jobs of the rarer one for the other.
    _, index, _, counts = min(names, key=lambda name: sum(name[3].values()))
    values = tuple(value for _, _, value, _ in names)
    conditions = " AND ".join(f"{name[0]} = ?{number}" for number, name in enumerate(names, 1))
    statuses = sorted(counts) or ["none"]
    parts = [
        f"SELECT seq FROM jobs INDEXED BY {index} WHERE {conditions} AND status = {_quoted(status)}"  # noqa: S608
        for status in statuses
    ]
    source = " UNION ALL ".join(parts)
    count = sum(counts.values())
    if len(names) > 1 and count:
        (count,) = db.execute(f"SELECT count(*) FROM ({source})", values).fetchone()  # noqa: S608
    return source, values, count


def _of_prefix(db: sqlite3.Connection, wanted: JobFilter, prefix: str) -> tuple[str, tuple[str, ...], int]:
    """Return the same for the jobs whose ids begin with ``prefix``: so few that they are counted and sorted."""
    given = {"status": wanted.status, "volume_name": wanted.volume_name, "correlation_id": wanted.correlation_id}
    filters = {column: value for column, value in given.items() if value is not None}
    conditions = "".join(f" AND {column} = ?" for column in filters)
    # "g" follows every character of an id.
    source = f"SELECT seq FROM jobs INDEXED BY jobs_id WHERE job_id >= ? AND job_id < ?{conditions}"  # noqa: S608
    values = (prefix, f"{prefix}g", *filters.values())
    (count,) = db.execute(f"SELECT count(*) FROM ({source})", values).fetchone()  # noqa: S608 - columns only
    return source, values, count


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _counts(db: sqlite3.Connection, field: int, value: str, status: str | None) -> dict[str, int]:
    rows = db.execute("SELECT status, jobs FROM job_counts WHERE field = ? AND value = ?", (field, value))
    counts = {name.decode(errors="replace"): number for name, number in rows}
    return counts if status is None else {name: number for name, number in counts.items() if name == status}


def set_aside(db: sqlite3.Connection, numbers: Sequence[int]) -> list[str]:
    """Move unreadable rows into a table of their own; return their job ids."""
    ids = []
    for seq in numbers:
        row = db.execute("SELECT job_id FROM jobs WHERE seq = ?", (seq,)).fetchone()
        if row is not None:
            ids.append(str(row[0], errors="replace") if isinstance(row[0], bytes) else str(row[0]))
        db.execute(
            "INSERT INTO unreadable_jobs SELECT seq, job_id, status, body, ? FROM jobs WHERE seq = ?",
            (time.time(), seq),
        )
        db.execute("DELETE FROM jobs WHERE seq = ?", (seq,))
    return ids


def prune(db: sqlite3.Connection, before: float, limit: int) -> int:
    """Remove up to ``limit`` ended jobs whose last change, by the service clock, was before ``before``."""
    return db.execute(
        "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE status NOT IN ('pending', 'running') "
        "AND aged_from < ? ORDER BY aged_from LIMIT ?)",
        (before, limit),
    ).rowcount
