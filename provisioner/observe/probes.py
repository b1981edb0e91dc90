"""Probes of resources that may hang, such as a disk. A hanging resource blocks one task and delays no caller.

One task at a time runs each probe. Callers wait briefly for its result, and otherwise get the previous result or an
error saying how long it has been running. A probe that hangs is not started again until it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from provisioner.contracts.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class NoAnswerError(UnavailableError):
    """The probe hangs, or has no result yet."""


class Probes:
    """The nursery of the probes' tasks. ``run`` must be running."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def start(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Run ``ask`` in the background; it must not raise."""
        assert self._nursery is not None, "run() comes first"
        self._nursery.start_soon(ask)


@dataclass(slots=True)
class _Run(Generic[T]):
    begun: float
    ended: trio.Event = field(default_factory=trio.Event)
    answer: T | None = None
    error: Exception | None = None


class Probe(Generic[T]):
    """One probe. ``ask`` should be cancellable, otherwise a shutdown waits for it.

    Callers wait until a run is ``patience`` seconds old. If the run is then under ``limit`` seconds old, they get the
    previous result, provided it is younger than ``stale`` seconds.
    """

    def __init__(
        self,
        probes: Probes,
        ask: Callable[[], Awaitable[T]],
        *,
        patience: float = 1.0,
        limit: float = 5.0,
        stale: float = 60.0,
    ) -> None:
        self._probes, self._ask = probes, ask
        self._patience, self._limit, self._stale = patience, limit, stale
        self._running: _Run[T] | None = None
        self._last: _Run[T] | None = None

    async def answer(self, age: float = 0.0) -> T:
        """Return the result of a run that began at most ``age`` seconds ago. Raises its error, or NoAnswerError."""
        wanted = trio.current_time() - age
        while self._last is None or self._last.begun < wanted:
            running = self._running or self._begin()
            with trio.move_on_at(running.begun + self._patience):
                await running.ended.wait()
            if not running.ended.is_set():
                return self._late(running)
        return _result(self._last)

    def _late(self, running: _Run[T]) -> T:
        now = trio.current_time()
        if self._last is not None and now - running.begun < self._limit and now - self._last.begun < self._stale:
            return _result(self._last)
        raise NoAnswerError(f"no answer for {now - running.begun:.0f} s")

    def _begin(self) -> _Run[T]:
        run = self._running = _Run[T](trio.current_time())
        self._probes.start(self._run)
        return run

    async def _run(self) -> None:
        run = self._running
        assert run is not None
        try:
            run.answer = await self._ask()
        except Exception as error:  # noqa: BLE001 - raised to the callers
            run.error = error
        self._running, self._last = None, run
        run.ended.set()


def _result(run: _Run[T]) -> T:
    if run.error is not None:
        raise run.error
    return run.answer  # type: ignore[return-value]  # set if there is no error
