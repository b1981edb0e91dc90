"""Calls to many hosts at a time: bounded in number and time, with the results in the order of the hosts.

Each call has a thread of its own. A thread cannot be interrupted, for example while a name is looked up, so one that
overruns its limit is left behind, and the process does not wait for it at its end.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from provisioner.cli.exit_status import CliError
from provisioner.cli.fleet.failures import Failure, failure_of
from provisioner.cli.formatting import span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Bytes of address space of a thread; the default is 8 MiB, which limits on memory may count.
_STACK = 512 * 1024
# Seconds added to a limit, so that a call that ends by its own time limit can say why.
_SLACK = 2.0

T = TypeVar("T")
R = TypeVar("R")


class OverrunError(CliError):
    """Raised in a thread that goes on after its limit: nothing more may be sent."""


class Call:
    """A call in progress, as its thread sees it."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._until = time.monotonic() + limit
        self._given_up = False

    def beat(self) -> None:
        """Start the limit again, before another request of the same call. Raises OverrunError after the limit."""
        with self._lock:
            if self._given_up:
                raise OverrunError("the call was given up")
            self._until = time.monotonic() + self._limit

    def seconds_left(self) -> float:
        """Return the seconds until the limit; not positive after it."""
        with self._lock:
            return self._until - time.monotonic()

    def give_up(self) -> bool:
        """Give the call up if its limit is over, and return whether it was."""
        with self._lock:
            self._given_up = self._until <= time.monotonic()
            return self._given_up


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls run at a time, and the seconds for each request."""

    parallel: int
    seconds: float


class _Round(Generic[T, R]):
    """One round of calls, as the main thread sees it."""

    def __init__(self, items: Sequence[T], work: Callable[[T, Call], R], limits: Limits) -> None:
        self._items, self._work, self._limits = items, work, limits
        self._done: queue.SimpleQueue[tuple[int, R | Failure]] = queue.SimpleQueue()
        self._running: dict[int, Call] = {}
        self._next = 0

    def run(self, on_result: Callable[[int, R | Failure], None]) -> None:
        while self._next < len(self._items) or self._running:
            while self._next < len(self._items) and len(self._running) < self._limits.parallel:
                self._start(self._next)
                self._next += 1
            nearest = min(call.seconds_left() for call in self._running.values())
            try:
                number, result = self._done.get(timeout=max(0.01, nearest))
            except queue.Empty:
                self._give_up(on_result)
                continue
            if self._running.pop(number, None) is not None:  # else it is late
                on_result(number, result)

    def _start(self, number: int) -> None:
        call = self._running[number] = Call(self._limits.seconds + _SLACK)
        start_thread(lambda: self._done.put((number, self._result(number, call))))

    def _result(self, number: int, call: Call) -> R | Failure:
        try:
            return self._work(self._items[number], call)
        except CliError as error:
            return failure_of(error)
        except (LookupError, TypeError, ValueError, AttributeError):
            return Failure("unreachable", "the answer is not one of a libvirt-volume-provisioner")
        except Exception as error:  # noqa: BLE001 - a fault in one call must not lose the other hosts
            return Failure("unreachable", f"the call failed: {error or type(error).__name__}")

    def _give_up(self, on_result: Callable[[int, R | Failure], None]) -> None:
        for number, call in list(self._running.items()):
            if call.give_up():
                del self._running[number]
                on_result(number, Failure("unreachable", f"no answer within {span(self._limits.seconds)}", lost=True))


def each(
    items: Sequence[T],
    work: Callable[[T, Call], R],
    limits: Limits,
    on_result: Callable[[int, R | Failure], None] = lambda _number, _result: None,
) -> list[R | Failure]:
    """Return the result of ``work`` for each item, in their order; a Failure for those that raised or took too long.

    ``on_result`` is called in this thread as the results come.
    """
    results: list[R | Failure] = [Failure("unreachable", "not asked")] * len(items)

    def keep(number: int, result: R | Failure) -> None:
        results[number] = result
        on_result(number, result)

    _Round(items, work, limits).run(keep)
    return results


def start_thread(work: Callable[[], None]) -> None:
    """Start a thread with a small stack that the process does not wait for. Raises CliError if there are too many."""
    before = threading.stack_size(_STACK)
    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError as error:
        raise CliError("this machine allows no more threads; lower --parallel, or name fewer hosts") from error
    finally:
        threading.stack_size(before)
