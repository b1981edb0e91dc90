"""Display of a job's progress: a bar on a terminal, lines in a pipe, or JSON objects."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import click

from provisioner.cli.formatting import printable, size, span
from provisioner.cli.output import flush, is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from rich.progress import TaskID

    from provisioner.cli.client import Answer

# The speed is averaged over this many polls, so one slow response does not make it jump.
SPEED_SAMPLES = 12
# Columns of the stage's name and of the bar.
STAGE_WIDTH = 14
MIN_BAR, MAX_BAR = 5, 40


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
    """Return how much of the stage's bytes are done, or None if the stage counts no bytes.

    The API's ``percent`` is that of the whole job, which would contradict the bytes beside it.
    """
    total = progress.get("bytes_total")
    return min(100.0, 100 * (progress.get("bytes_processed") or 0) / total) if total else None


def headline(progress: Mapping[str, Any]) -> str:
    """Return the stage and, if it counts bytes, its percent: ``downloading 50 %``."""
    percent = stage_percent(progress)
    stage = str(progress.get("stage")).replace("_", " ")
    return stage if percent is None else f"{stage} {int(percent)} %"


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
        return printable(f"completed: {made} ({volume['provisioned_by']}, {image}){_signed(job)}{_replaced(job)}")
    if job.get("image_path"):
        return printable(f"completed: {image}, kept at {job['image_path']}{_signed(job)}")
    return "completed"


def _signed(job: Mapping[str, Any]) -> str:
    """Return who signed the image, if a signature was demanded."""
    signer = job.get("signed_by")
    return f"; signed by {signer['kind']} key {signer['key']}" if signer else ""


def _replaced(job: Mapping[str, Any]) -> str:
    """Return which volume the job replaced, if it matters: it was not the service's own, or it is kept."""
    replaced = job.get("replaced") or {}
    whose = "" if replaced.get("ours") else " that this service did not make"
    if "kept_as" in replaced:
        return f"; it replaced a volume{whose}, kept as {replaced['kept_as']} until {replaced['kept_until']}"
    return f"; it replaced a volume{whose}" if replaced and whose else ""


class Lines:
    """A display for pipes and log files: a line at each change of stage and every ten percent."""

    def __init__(self, *, err: bool = False) -> None:
        """``err``: write to standard error."""
        self._err = err
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
        mark = (progress.get("stage"), int((stage_percent(progress) or 0) // 10))
        if not progress or mark == self._last:
            return
        self._last = mark
        click.echo(printable(", ".join([headline(progress), *facts(progress, speed)])), err=self._err)
        flush()  # the reader of a pipe wants lines while the job runs


class Bar:
    """A progress bar on a terminal, which is replaced by the result. One line at any width from 40 columns."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._speed = Speed()
        self._gauge = BarColumn()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            self._gauge,
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
            self._task = self._bar.add_task("", total=100, facts="")
        percent = stage_percent(progress)
        stage = printable(progress.get("stage", job.data.get("status"))).replace("_", " ")
        known = [] if percent is None else [f"{int(percent):>3} %"]
        text, gauge = fit([*known, *facts(progress, self._speed.update(progress))], self._bar.console.width)
        self._gauge.bar_width = gauge
        self._bar.update(self._task, description=f"{stage:<{STAGE_WIDTH}}", completed=percent or 0, facts=text)
        self._bar.start()  # not earlier: the bar must not show values that the server did not send


def fit(words: list[str], columns: int) -> tuple[str, int]:
    """Return the leading ``words`` that fit beside the stage, and the width of the bar in the room left."""
    room = columns - STAGE_WIDTH - 3  # a blank between the parts, and the last column stays empty
    kept = list(words)
    while kept and len("  ".join(kept)) + MIN_BAR > room:
        kept.pop()
    text = "  ".join(kept)
    return text, max(MIN_BAR, min(MAX_BAR, room - len(text)))


class Objects(Lines):
    """The API's object at each change, one on each line."""

    def show(self, job: Answer) -> None:
        click.echo(job.text)
        flush()


def display(*, as_json: bool) -> Display:
    """Return the display that fits standard output."""
    if as_json:
        return Objects()
    # A dumb terminal cannot redraw a line.
    return Bar() if is_terminal() and os.environ.get("TERM") not in {"dumb", "unknown"} else Lines()
