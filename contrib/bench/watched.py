"""Runs the daemon and measures its event loop: how late it was, and how long each step took.

    python contrib/bench/watched.py FILE serve --config CONFIG

When the daemon ends, writes the measurements to FILE for ``health.py``. A step is the work of one task between two
waits, in processor time of the loop's thread. Lateness is the delay of a timer of 5 ms.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import trio

from provisioner.cli import main

NAP = 0.005


class Watch(trio.abc.Instrument):
    """The processor seconds of each step and the delay of each nap in seconds, with their times."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.longest: tuple[float, str] = (0.0, "")
        self.late: list[tuple[float, float]] = []
        self._began = 0.0

    def before_run(self) -> None:
        trio.lowlevel.spawn_system_task(self._nap)

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.thread_time() - self._began
        self.steps.append((time.monotonic(), took))
        self.longest = max(self.longest, (took, task.name))

    async def _nap(self) -> None:
        while True:
            due = trio.current_time() + NAP
            await trio.sleep_until(due)
            now = trio.current_time()
            self.late.append((time.monotonic(), now - due))


def run_watched(run, watch: Watch):
    return lambda *args, **options: run(*args, **options, instruments=[watch])


if __name__ == "__main__":
    watch, target = Watch(), Path(sys.argv[1])
    trio.run = run_watched(trio.run, watch)
    sys.argv[1:] = sys.argv[2:]
    try:
        main()
    finally:
        target.write_text(json.dumps({"steps": watch.steps, "late": watch.late, "longest": watch.longest}))
