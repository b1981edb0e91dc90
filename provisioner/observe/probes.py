"""Questions to things that may hang, such as a disk. Owns that one hung thing delays nobody and takes one task at most.

Each question is asked by one task at a time. Callers wait a moment for it and otherwise get the last answer, or learn
since when there is none; a question that hangs goes on hanging and is not asked again meanwhile.
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
    """The question has hung for a while, or there is no answer to it yet."""


class Probes:
    """The tasks that ask. ``run`` must be running."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def start(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Run ``ask``, which raises nothing, in the background."""
        assert self._nursery is not None, "run() comes first"
        self._nursery.start_soon(ask)


@dataclass(slots=True)
class _Run(Generic[T]):
    begun: float
    ended: trio.Event = field(default_factory=trio.Event)
    answer: T | None = None
    error: Exception | None = None


class Probe(Generic[T]):
    """One question. ``ask`` should be cancellable, or a shutdown waits for it.

    Callers wait ``patience`` seconds for a run; within ``limit`` seconds the previous answer, if it is no older than
    ``stale`` seconds, stands in for one that is not there yet.
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
        """Return the answer of a run that began at most ``age`` seconds ago. Raises NoAnswerError, or its error."""
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
        except Exception as error:  # noqa: BLE001 - handed on to whoever asks
            run.error = error
        self._running, self._last = None, run
        run.ended.set()


def _result(run: _Run[T]) -> T:
    if run.error is not None:
        raise run.error
    return run.answer  # type: ignore[return-value]  # set if there is no error
