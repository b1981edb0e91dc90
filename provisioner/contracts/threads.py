"""Threads for long work, kept out of trio's own pool so that short work never waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import trio

from provisioner.contracts.errors import TooManyRequestsError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def run_long(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run long blocking work in its own thread. For use by jobs, whose number is already limited."""
    return await trio.to_thread.run_sync(work, *args, limiter=trio.CapacityLimiter(1))


class ThreadQueue:
    """A few threads behind a short queue, for long work that clients may request at any time."""

    def __init__(self, what: str, *, threads: int, most_waiting: int) -> None:
        """``what`` completes "too many requests to ..."."""
        self._what = what
        self._limiter = trio.CapacityLimiter(threads)
        self._most_waiting = most_waiting

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Queue blocking ``work`` and run it in a thread. Raises TooManyRequestsError if the queue is full."""
        if self._limiter.statistics().tasks_waiting >= self._most_waiting:
            raise TooManyRequestsError(f"too many requests to {self._what} are waiting; try again later")
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)
