"""Threads that read and write runs. No thread outlives the call, and the first failure stops them all."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import trio

from lvp_convert_native.buffers import Buffer
from lvp_convert_native.runs import RUN_BYTES
from provisioner.contracts import run_long
from provisioner.contracts.errors import ProvisionerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lvp_convert_native.image_file import ImageFile
    from lvp_convert_native.runs import Run, RunQueue, RunReader
    from lvp_convert_native.sink import Sink
    from provisioner.contracts import RateLimiter

# The clusters of a run may be scattered; most of a longer range of the file belongs to other runs.
MAX_SPENT = 2 * RUN_BYTES


class Progress:
    """A thread-safe byte counter; the reported sum never decreases."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add ``count`` processed bytes."""
        with self._lock:
            self._done += count
            self._report(self._done)


class Inflating:
    """Limits how many threads of this process inflate at once to the number of processors.

    More would only delay the event loop, which also needs a processor and the GIL. Threads that
    read and write mostly wait for the device and are not limited.
    """

    def __init__(self) -> None:
        self._slots = threading.Semaphore(len(os.sched_getaffinity(0)))

    def read(self, reader: RunReader, run: Run, into: memoryview) -> None:
        """Read ``run``; wait for a slot if it may need inflating."""
        if run.entries is None:
            reader.read(run, into)
        else:
            with self._slots:
                reader.read(run, into)


def write_runs(
    image: ImageFile,
    queue: RunQueue,
    reader: RunReader,
    inflating: Inflating,
    sink: Sink,
    rate_limiter: RateLimiter,
    progress: Progress,
) -> None:
    """Process runs in one thread until the queue is empty. Raises trio.Cancelled between two runs."""
    buffer = Buffer(RUN_BYTES)
    while True:
        trio.from_thread.check_cancelled()
        run = queue.take()
        if run is None:
            return
        if run.is_zero:
            sink.zero(run.guest, run.guest + run.length, trio.from_thread.check_cancelled)
        else:
            image.wait(run.low, run.need)
            inflating.read(reader, run, buffer.view[: run.length])
            if run.need - run.low <= MAX_SPENT:
                image.spent(run.low, run.need)
            sink.write(buffer, run.length, run.guest)
            rate_limiter.acquire(run.length, trio.from_thread.check_cancelled)
        progress.add(run.length)


async def run_threads(count: int, work: Callable[[], None]) -> None:
    """Run ``work`` in ``count`` threads. Raises the first ProvisionerError, ungrouped, once all of them have ended."""
    failures: list[ProvisionerError] = []

    async def one() -> None:
        try:
            await run_long(work)
        except ProvisionerError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    if failures:
        raise failures[0]
