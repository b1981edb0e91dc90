"""Display of a job's progress: a bar on a terminal, lines in a pipe, or JSON objects."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import click

from provisioner.cli.formatting import printable, size, span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from rich.progress import TaskID

    from provisioner.cli.client import Answer

# The speed is averaged over this many polls, so one slow response does not make it jump.
SPEED_SAMPLES = 12


class Display(Protocol):
    """A display of a job's successive states."""

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...
    def show(self, job: Answer) -> None: ...


class Speed:
    """Bytes per second within one stage, from successive polls."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._stage: object = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=SPEED_SAMPLES)

    def update(self, progress: Mapping[str, Any]) -> float | None:
        """Return the current speed, or None until two polls of this stage show progress."""
        done = progress.get("bytes_processed")
        if progress.get("stage") != self._stage or (self._samples and (done or 0) < self._samples[-1][1]):
            self._stage = progress.get("stage")
            self._samples.clear()
        if done is None:
            return None
        self._samples.append((self._now(), done))
        (start, first), (stop, last) = self._samples[0], self._samples[-1]
        return (last - first) / (stop - start) if stop > start and last > first else None


def stage_percent(progress: Mapping[str, Any]) -> float | None:
    """Return the percent of the bytes that are shown beside it, those of the current stage; None if not known."""
    total = progress.get("bytes_total")
    return min(100.0, 100 * progress.get("bytes_processed", 0) / total) if total else None


def facts(progress: Mapping[str, Any], speed: float | None) -> list[str]:
    """Return bytes, speed and time left, as far as they are known."""
    words = []
    if progress.get("bytes_total"):
        words.append(f"{size(progress.get('bytes_processed', 0))} of {size(progress['bytes_total'])}")
    if speed:
        words.append(f"{size(speed)}/s")
    if progress.get("eta_sec"):
        words.append(f"{span(progress['eta_sec'])} left")
    return words


def outcome(job: Mapping[str, Any]) -> str:
    """Return the result of a completed job in one line."""
    image = "image from the cache" if job.get("cache_hit") else "image downloaded"
    volume = job.get("volume")
    if volume:
        made = f"volume {volume['name']} on {volume['target']}, {size(volume['size_bytes'])}, is {volume['path']}"
        return printable(f"completed: {made} ({volume['provisioned_by']}, {image})")
    if job.get("image_path"):
        return printable(f"completed: {image}, kept at {job['image_path']}")
    return "completed"


class Lines:
    """A display for pipes and log files: a line at each change of stage and every ten percent."""

    def __init__(self) -> None:
        self._speed = Speed()
        self._last: tuple[object, int] | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, job: Answer) -> None:
        if job.data.get("status") == "completed":
            click.echo(outcome(job.data))
            return
        progress = job.data.get("progress") or {}
        speed = self._speed.update(progress)
        percent = stage_percent(progress)
        mark = (progress.get("stage"), int((percent or 0) // 10))
        if not progress or mark == self._last:
            return
        self._last = mark
        line = f"{progress.get('stage')}" if percent is None else f"{progress.get('stage')} {percent:.0f} %"
        click.echo(printable(", ".join([line, *facts(progress, speed)])))
        sys.stdout.flush()  # the reader of a pipe wants lines while the job runs


class Bar:
    """A progress bar on a terminal, which is replaced by the result."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._speed = Speed()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[percent]:>5}", markup=False),
            TextColumn("{task.fields[facts]}", markup=False),
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, job: Answer) -> None:
        if job.data.get("status") == "completed":
            self._bar.stop()
            click.echo(outcome(job.data))
            return
        progress = job.data.get("progress") or {}
        if self._task is None:
            self._task = self._bar.add_task("", total=None, percent="", facts="")
        percent = stage_percent(progress)
        self._bar.update(
            self._task,
            description=printable(progress.get("stage", job.data.get("status"))).replace("_", " "),
            total=None if percent is None else 100,  # without a total the bar only moves to and fro
            completed=percent or 0,
            percent="" if percent is None else f"{percent:.0f} %",
            facts="  ".join(facts(progress, self._speed.update(progress))),
        )
        self._bar.start()  # not earlier: the bar must not show values that the server did not send


class Objects(Lines):
    """The API's object at each change, one on each line."""

    def show(self, job: Answer) -> None:
        click.echo(job.text)
        sys.stdout.flush()


def display(*, as_json: bool) -> Display:
    """Return the display that fits standard output."""
    if as_json:
        return Objects()
    return Bar() if sys.stdout.isatty() else Lines()
