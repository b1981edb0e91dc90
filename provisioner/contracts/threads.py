"""Threads for work of unbounded length: short work, in trio's own pool, must never wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import trio

from provisioner.contracts.errors import TooManyRequestsError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def run_long(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run blocking work of unbounded length in a thread of its own. For jobs, whose number is bounded already."""
    return await trio.to_thread.run_sync(work, *args, limiter=trio.CapacityLimiter(1))


class ThreadQueue:
    """A few threads and a short queue before them, for long work that clients may ask for at will."""

    def __init__(self, what: str, *, threads: int, most_waiting: int) -> None:
        """``what`` completes "too many requests to ..."."""
        self._what = what
        self._limiter = trio.CapacityLimiter(threads)
        self._most_waiting = most_waiting

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run blocking ``work`` in its turn. Raises TooManyRequestsError if the queue is full."""
        if self._limiter.statistics().tasks_waiting >= self._most_waiting:
            raise TooManyRequestsError(f"too many requests to {self._what} are waiting; try again later")
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)
