"""The job database file: schema, migrations, the check at start, and setting a damaged file aside. Has no queries.

Version 0 is the schema without ``user_version``. Each later version has one migration from its predecessor, in one
transaction. All functions block; call them in a thread.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts.errors import UnavailableError
from provisioner.jobs.service_clock import LONGEST_DOWNTIME

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)

VERSION = 1

# Seconds to wait for another process's lock: less than the callers' deadlines, so that the error names the lock.
BUSY_TIMEOUT = 5.0
# Time limit of the check at start, in seconds; enough for about 400,000 jobs. In a larger database only the first part
# is checked, unless the previous run found damage.
_CHECK_TIME = 0.4

# ``seq`` is the order of acceptance, ``aged_from`` the service clock at the job's last change. ``job_counts`` has the
# number of jobs by status: of all (field 0), of each volume name (1), of each correlation id (2). Triggers maintain it.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL,
    status TEXT NOT NULL,
    target TEXT,
    volume_name TEXT,
    correlation_id TEXT,
    idempotency_key TEXT,
    aged_from REAL NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS job_counts (
    field INTEGER, value TEXT, status TEXT, jobs INTEGER NOT NULL, PRIMARY KEY (field, value, status)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS service_clock (id INTEGER PRIMARY KEY, seconds REAL NOT NULL, wall REAL NOT NULL);
CREATE TABLE IF NOT EXISTS unreadable_jobs (
    seq INTEGER, job_id TEXT, status TEXT, body TEXT, set_aside_at REAL
);
"""

# An index for every filter, in the order of the list, created after a migration has filled the table. The indexes of
# names also hold the other name, for queries by both.
_INDEXES = """
CREATE UNIQUE INDEX IF NOT EXISTS jobs_id ON jobs (job_id);
CREATE INDEX IF NOT EXISTS jobs_seq ON jobs (seq);
CREATE INDEX IF NOT EXISTS jobs_status ON jobs (status, seq);
CREATE INDEX IF NOT EXISTS jobs_volume ON jobs (volume_name, status, seq, correlation_id)
    WHERE volume_name IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_correlation ON jobs (correlation_id, status, seq, volume_name)
    WHERE correlation_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_key ON jobs (idempotency_key, seq) WHERE idempotency_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_ended ON jobs (aged_from) WHERE status NOT IN ('pending', 'running');
"""

_COUNTED = ((0, "''"), (1, "{row}.volume_name"), (2, "{row}.correlation_id"))
_IN = """
    INSERT INTO job_counts SELECT {field}, {value}, new.status, 1 WHERE {value} IS NOT NULL
        ON CONFLICT (field, value, status) DO UPDATE SET jobs = jobs + 1;
"""
_OUT = """
    UPDATE job_counts SET jobs = jobs - 1 WHERE field = {field} AND value = {value} AND status = old.status;
    DELETE FROM job_counts WHERE field = {field} AND value = {value} AND status = old.status AND jobs <= 0;
"""
_COUNT_IN = "".join(_IN.format(field=field, value=value.format(row="new")) for field, value in _COUNTED)
_COUNT_OUT = "".join(_OUT.format(field=field, value=value.format(row="old")) for field, value in _COUNTED)
_TRIGGERS = f"""
CREATE TRIGGER IF NOT EXISTS jobs_insert AFTER INSERT ON jobs BEGIN {_COUNT_IN} END;
CREATE TRIGGER IF NOT EXISTS jobs_delete AFTER DELETE ON jobs BEGIN {_COUNT_OUT} END;
CREATE TRIGGER IF NOT EXISTS jobs_update AFTER UPDATE OF status ON jobs WHEN old.status IS NOT new.status
    BEGIN {_COUNT_OUT} {_COUNT_IN} END;
"""

# The age of migrated jobs starts at 0: the wall clock that recorded their ends may have been wrong.
_FROM_0 = """
INSERT INTO jobs (seq, job_id, status, target, volume_name, correlation_id, idempotency_key, aged_from, body)
    SELECT NULL, ifnull(job_id, 'unknown-' || rowid), status,
        CASE WHEN json_valid(body) THEN json_extract(body, '$.spec.target') END,
        volume_name, correlation_id, idempotency_key, 0, body
    FROM jobs_0 ORDER BY seq;
DROP TABLE jobs_0;
INSERT INTO job_counts SELECT 0, '', status, count(*) FROM jobs GROUP BY status;
INSERT INTO job_counts
    SELECT 1, volume_name, status, count(*) FROM jobs WHERE volume_name IS NOT NULL GROUP BY volume_name, status;
INSERT INTO job_counts
    SELECT 2, correlation_id, status, count(*) FROM jobs WHERE correlation_id IS NOT NULL
    GROUP BY correlation_id, status;
"""

_COLUMNS = (
    {"job_id", "seq", "status", "volume_name", "correlation_id", "idempotency_key", "body"},
    {"seq", "job_id", "status", "target", "volume_name", "correlation_id", "idempotency_key", "aged_from", "body"},
)


class DamagedError(Exception):
    """The file is not a readable database of this service."""


def open_database(path: Path) -> sqlite3.Connection:
    """Return the writer's connection to a database of the current version.

    A damaged database is renamed and kept, and a new one created. Raises UnavailableError if a newer version of the
    service wrote it, and sqlite3.Error or OSError if it cannot be used now.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _open(path)
    except (DamagedError, sqlite3.DatabaseError) as error:
        if not isinstance(error, DamagedError) and not is_damage(error):
            raise
        kept_as = _set_aside(path)
        log.error(
            "the job store was damaged and has been set aside; the job history starts empty, "
            "volumes and cached images are not affected",
            path=str(path), kept_as=str(kept_as), reason=str(error),
        )  # fmt: skip
        return _open(path)


def connect(path: Path) -> sqlite3.Connection:
    """Return a read-only connection."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        db.text_factory = bytes
        db.execute("PRAGMA query_only = 1")
    except BaseException:
        db.close()
        raise
    return db


def is_damage(error: BaseException) -> bool:
    """Return whether SQLite reports the file itself as broken, rather than a full disk, a lock or a read error."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def suspect(path: Path) -> None:
    """Make the next start check the whole database, however long that takes."""
    try:
        _mark(path).touch(mode=0o600)
    except OSError as error:
        log.warning("the damage to the job store could not be recorded for the next start", reason=str(error))


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.suspect")


def _open(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        # Text as bytes: a row that is not UTF-8 must not make the others unreadable.
        db.text_factory = bytes
        # A job that was accepted must survive a power cut.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {16 * 2**20}")
        _check(db, path)
        _migrate(db, path)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a migration leaves a log as large as the database
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Raise DamagedError if the database is inconsistent, as far as it can be checked in time."""
    bound = threading.Timer(_CHECK_TIME, db.interrupt)  # the check's long parts call no progress handler
    if not _mark(path).exists():
        bound.start()
    try:
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        log.debug("the job store is large; only its beginning was checked", path=str(path))
        return
    finally:
        bound.cancel()
        if bound.ident is not None:
            bound.join()
    if verdict != b"ok":
        raise DamagedError(verdict.decode(errors="replace"))
    _mark(path).unlink(missing_ok=True)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise UnavailableError(
            f"the job store {path} was written by a newer version of the service (schema {version}, this one knows "
            f"{VERSION}): start that version, or move the file away"
        )
    columns = {name.decode() for _, name, *_ in db.execute("PRAGMA table_info(jobs)")}
    if columns and not columns >= _COLUMNS[version]:
        raise DamagedError(f"the jobs table lacks {', '.join(sorted(_COLUMNS[version] - columns))}")
    db.execute("BEGIN IMMEDIATE")
    try:
        if version == 0 and columns:
            log.info("migrating the job store to a new schema", path=str(path), schema=VERSION)
            db.execute("ALTER TABLE jobs RENAME TO jobs_0")
        _run_all(db, _SCHEMA)
        if version == 0 and columns:
            _run_all(db, _FROM_0)
        _run_all(db, _INDEXES)
        _run_all(db, _TRIGGERS)
        # Row 1 has the service clock and the wall clock, row 2 from which second of the former the latter is trusted.
        trusted = "INSERT OR IGNORE INTO service_clock VALUES (1, 0, ?), (2, ?, 0)"
        db.execute(trusted, (time.time(), LONGEST_DOWNTIME))
        if version != VERSION:
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _run_all(db: sqlite3.Connection, script: str) -> None:
    """Run all statements of a script in the open transaction (``executescript`` would commit it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if statement.strip() and sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    if statement.strip():
        db.execute(statement)


def _set_aside(path: Path) -> Path:
    """Rename the database and its companion files to a free name; return the database's."""
    stem = time.strftime(f"{path.name}.damaged-%Y%m%d-%H%M%S", time.gmtime())
    number, kept_as = 1, path.with_name(stem)
    while kept_as.exists():
        number += 1
        kept_as = path.with_name(f"{stem}-{number}")
    for suffix in ("-wal", "-shm", ""):  # the database last: until it is renamed, the next start tries again
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(kept_as.with_name(kept_as.name + suffix))
    _mark(path).unlink(missing_ok=True)
    return kept_as
