"""Shields with a deadline, for work that must finish even if its task is cancelled.

A bare ``CancelScope(shield=True, deadline=...)`` hides its own expiry: the block ends half-way and the caller continues
as if it had finished. Both functions here raise instead.

A deadline does not interrupt a thread: ``trio.to_thread.run_sync`` gives up only while it waits for its limiter (then
the work has *not* been done), and otherwise returns when the thread ends, however late. Limit work in threads by other
means (timeouts of locks, sockets, SQLite).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts.errors import RollbackError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger(__name__)

# A rollback step that takes longer hangs on a broken device; recovery retries it at the next start.
UNDO_TIMEOUT = 60.0


class ShieldExpiredError(UnavailableError):
    """A shielded block timed out before it finished."""


@contextmanager
def shielded(what: str, seconds: float) -> Iterator[None]:
    """Shield the block from cancels for ``seconds`` at most.

    ``what`` completes "could not ..."; it also names the block in the log if it finishes late (in a thread).
    Raises ShieldExpiredError if the deadline interrupts the block.
    """
    started = trio.current_time()
    with trio.CancelScope(shield=True, deadline=started + seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise ShieldExpiredError(f"could not {what} within {seconds:g} s")
    taken = trio.current_time() - started
    if taken > seconds:
        log.warning("finished late", what=what, seconds=round(taken, 3), limit=seconds)


@contextmanager
def undoing(what: str, seconds: float = UNDO_TIMEOUT) -> Iterator[None]:
    """Shield a rollback step from cancels for ``seconds`` at most.

    ``what`` completes "could not ...". Raises RollbackError if the block fails or times out.
    """
    try:
        with shielded(what, seconds):
            yield
    except ShieldExpiredError as error:
        raise RollbackError(error.message) from error
    except Exception as error:
        raise RollbackError(f"could not {what}: {error}") from error
