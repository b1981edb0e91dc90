"""Threads for long work, kept out of trio's own pool so that short work never waits for it.

Long work runs under SCHED_BATCH. A thread that gives up the interpreter's lock wakes another one while it still holds a
mutex of the interpreter. If the woken thread takes its processor at once, every thread, the event loop too, waits until
it runs again. The kernel does not let a thread under SCHED_BATCH preempt others when it wakes up. Measured with two
cold provisions on two busy processors: `/health` at the 99th percentile takes two thirds of the time. On quiet ones it
gains nothing.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

import trio

from provisioner.contracts.errors import TooManyRequestsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def as_batch(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Call ``work`` with the calling thread under SCHED_BATCH."""
    with _batch():
        return work(*args)


@contextmanager
def _batch() -> Iterator[None]:
    """Change the policy of the calling thread, unless it has a special one; afterwards change it back."""
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:  # trio uses its threads again, also to start programs, which inherit the policy
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


async def run_long(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run long blocking work in its own thread. For use by jobs, whose number is already limited."""
    return await trio.to_thread.run_sync(as_batch, work, *args, limiter=trio.CapacityLimiter(1))


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
        return await trio.to_thread.run_sync(as_batch, work, *args, limiter=self._limiter)
