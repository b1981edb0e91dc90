"""Deterministic interleaving of concurrent operations: every await is held until the schedule releases it.

While a `Schedule` is in force, each step of a fake and each call into a worker thread is a *point*: the task waits
there until the schedule picks it. Work in threads runs inline, so a run depends on the picks alone and can be repeated.

The usual schedule lets a task go on as long as it can, and then the one that has waited longest. `explore` runs a
scenario through all schedules that deviate from that at most once (delay bounding; most ordering faults need one
deviation or two), and then through random ones that deviate more.
"""

from __future__ import annotations

import math
import random
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio
import trio.testing

from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.testing.steps import Steps
from provisioner.download.growing_file import GrowingFile

# Clock jumps of a second each in a run that waits only for time; more mean a deadlock.
MOST_JUMPS = 300
MOST_PICKS = 3000


@dataclass(eq=False)
class Point:
    """A task waiting at the point ``name``."""

    name: str
    task: trio.lowlevel.Task
    go: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class Pick:
    """One decision: the point ``taken`` of so many ``choices``; 0 is the usual one.

    ``free``: it only chose which operation begins, which is no deviation.
    """

    taken: int
    choices: int
    free: bool = False

    @property
    def deviates(self) -> bool:
        return self.taken > 0 and not self.free


class Schedule:
    """One run: the picks of ``prefix`` first, then random ones of ``chance``, otherwise the default ones."""

    def __init__(self, prefix: tuple[int, ...] = (), chance: random.Random | None = None) -> None:
        self._clock = trio.testing.MockClock()
        self._prefix = prefix
        self._chance = chance
        self.active = False
        self.picks: list[Pick] = []
        self.trace: list[str] = []
        self._waiting: list[Point] = []
        self._last: trio.lowlevel.Task | None = None

    @property
    def now(self) -> int:
        """Return the logical time: the number of picks so far."""
        return len(self.picks)

    async def point(self, name: str) -> None:
        """Wait until the schedule lets this task continue; return at once before the schedule is active."""
        if not self.active:
            return
        here = Point(name, trio.lowlevel.current_task())
        self._waiting.append(here)
        try:
            await here.go.wait()
        finally:
            if here in self._waiting:
                self._waiting.remove(here)

    async def run(self, finished, clock) -> None:
        """Pick one point after another until ``finished()``; jump the clock if all tasks wait for time."""
        self._clock = clock
        clock.autojump_threshold = math.inf
        jumps = 0
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if self._waiting:
                self._let_go()
            elif finished():
                return
            else:
                jumps += 1
                assert jumps < MOST_JUMPS, f"deadlock after {self.trace}"
                clock.jump(1)
            assert len(self.picks) < MOST_PICKS, f"no end after {self.trace[-20:]}"

    def stop(self) -> None:
        """Stop holding tasks and release those that wait."""
        self.active = False
        self._clock.autojump_threshold = 0
        for point in self._waiting:
            point.go.set()

    def _let_go(self) -> None:
        # The task that ran last comes first: picking it is not a preemption.
        points = sorted(self._waiting, key=lambda point: point.task is not self._last)
        if len(self.picks) < len(self._prefix):
            taken = self._prefix[len(self.picks)]
        elif self._chance is not None and self._chance.random() < 0.3:
            taken = self._chance.randrange(len(points))
        else:
            taken = 0
        self.picks.append(Pick(taken, len(points), free=all(point.name.startswith("begin") for point in points)))
        point = points[taken]
        self._last = point.task
        self._waiting.remove(point)
        self.trace.append(f"{point.task.name.rpartition('.')[2]}@{point.name}")
        point.go.set()

    async def in_thread(self, work, *args, abandon_on_cancel=False, cancellable=None, limiter=None):
        """Replace `trio.to_thread.run_sync`: one point while it queues, and one before its result is seen."""
        name = getattr(getattr(work, "func", work), "__qualname__", str(work)).replace("<locals>.", "")
        if limiter is not None:
            await limiter.acquire()
        try:
            if not self.active:
                await _until_it_can_run(args)
                return work(*args)
            try:
                await self.point(f"queue {name}")
            except trio.Cancelled:
                if abandon_on_cancel:  # the thread may finish although the caller is gone
                    work(*args)
                raise
            await _until_it_can_run(args)
            result = work(*args)
            with trio.CancelScope(shield=not abandon_on_cancel):
                await self.point(f"result {name}")
            return result
        finally:
            if limiter is not None:
                limiter.release()


async def _until_it_can_run(args) -> None:
    """A thread that follows a growing file blocks until bytes arrive; run inline, it must start when all are there."""
    for growing in (arg for arg in args if isinstance(arg, GrowingFile)):
        with trio.CancelScope(shield=True), suppress(ProvisionerError):
            await growing.completed()


@contextmanager
def in_force(schedule: Schedule):
    """Hold every step of a fake and every call into a thread."""
    at, run_sync, check = Steps.at, trio.to_thread.run_sync, trio.from_thread.check_cancelled

    async def held_at(steps, step):
        await schedule.point(step)
        await at(steps, step)

    Steps.at = held_at
    trio.to_thread.run_sync = schedule.in_thread
    trio.from_thread.check_cancelled = lambda: None
    try:
        yield
    finally:
        Steps.at, trio.to_thread.run_sync, trio.from_thread.check_cancelled = at, run_sync, check


def play(scenario, schedule: Schedule) -> None:
    """Run ``scenario(schedule, clock)`` once. A failure names its schedule."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio._core._run._r.seed(0)  # trio shuffles the tasks that are ready at once
    try:
        with in_force(schedule):
            trio.run(partial(scenario, schedule, clock), clock=clock)
    except Exception as error:
        error.add_note(f"schedule {tuple(pick.taken for pick in schedule.picks)}: {' '.join(schedule.trace)}")
        raise


def explore(scenario, *, random_runs: int, at_least: int = 0, seed: int = 0) -> int:
    """Run all schedules with one deviation, then random ones; return their number.

    If these are fewer than ``at_least``, those with two deviations are played too, and so on up to four.
    """
    for deviations in range(1, 5):
        played, waiting = 0, [()]
        while waiting:
            prefix = waiting.pop()
            schedule = Schedule(prefix)
            play(scenario, schedule)
            played += 1
            waiting += branches(schedule.picks, len(prefix), deviations)
        if played >= at_least:
            break
    for number in range(random_runs):
        play(scenario, Schedule(chance=random.Random(seed + number)))
    return played + random_runs


def branches(picks: list[Pick], begin: int, deviations: int):
    """Yield the prefixes that differ from a played schedule at one later pick and stay within the bound."""
    taken = tuple(pick.taken for pick in picks)
    spent = sum(pick.deviates for pick in picks[:begin])
    for place in range(begin, len(picks)):
        if picks[place].free or spent < deviations:
            for other in range(1, picks[place].choices):
                yield (*taken[:place], other)
