"""Work that must finish although its task is cancelled. Owns the only shields with a deadline in the project.

A bare ``CancelScope(shield=True, deadline=...)`` swallows its own expiry: the block is left half-way and the caller
goes on as if it had finished. Both functions here raise instead.

A deadline does not interrupt a thread: ``trio.to_thread.run_sync`` gives up only while it queues for its limiter (then
the work has *not* been done), and otherwise returns when the thread does, however late. Bound work in threads by its
own means (timeouts of locks, sockets, SQLite).
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

# An undo that takes longer hangs on a broken device; recovery tries it again at the next start.
UNDO_TIMEOUT = 60.0


class ShieldExpiredError(UnavailableError):
    """A shielded block ran out of time and was left half-way: what it was to do has not been done."""


@contextmanager
def shielded(what: str, seconds: float) -> Iterator[None]:
    """Run the block although the task is cancelled, for ``seconds`` at most.

    ``what`` completes "could not ..." and names the block in the log when it finishes late (a thread).
    Raises ShieldExpiredError if the deadline cut the block short.
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
    """Run an undo step although the task is cancelled, for ``seconds`` at most.

    ``what`` completes "could not ...". Raises RollbackError if the block fails or runs out of time.
    """
    try:
        with shielded(what, seconds):
            yield
    except ShieldExpiredError as error:
        raise RollbackError(error.message) from error
    except Exception as error:
        raise RollbackError(f"could not {what}: {error}") from error
