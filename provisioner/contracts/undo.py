"""Undoing under a deadline: what a back end wraps its clean-up in. Owns the shield, not what is undone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import RollbackError

if TYPE_CHECKING:
    from collections.abc import Iterator

# An undo that takes longer hangs on a broken device; recovery tries it again at the next start.
UNDO_TIMEOUT = 60.0


@contextmanager
def undoing(what: str, seconds: float = UNDO_TIMEOUT) -> Iterator[None]:
    """Run the block although the task is cancelled, for ``seconds`` at the most.

    ``what`` completes "could not ...". Raises RollbackError where the block fails or runs out of time.
    """
    with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds) as scope:
        try:
            yield
        except Exception as error:
            raise RollbackError(f"could not {what}: {error}") from error
    if scope.cancelled_caught:
        raise RollbackError(f"could not {what} within {seconds:g} s")
