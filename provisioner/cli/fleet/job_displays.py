"""How the jobs of many hosts are shown while they run: a table on a terminal, lines in a pipe, or objects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import click

from provisioner.cli.fleet.hosts import print_object, print_rows
from provisioner.cli.fleet.screen import Screen, can_redraw, fitted
from provisioner.cli.formatting import printable, size, span
from provisioner.cli.output import flush
from provisioner.cli.progress import facts, headline, outcome, stage_percent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from provisioner.cli.fleet.waiting import WatchedJob

_ORDER = {"running": 0, "pending": 1, "failed": 2, "cancelled": 3, "completed": 4}


class JobDisplay(Protocol):
    """A display of jobs. ``show`` is called at each change, ``draw`` a few times a second, ``end`` after the exit."""

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...
    def show(self, job: WatchedJob) -> None: ...
    def note(self, text: str) -> None: ...
    def draw(self, jobs: Sequence[WatchedJob]) -> None: ...
    def end(self, jobs: Sequence[WatchedJob]) -> None: ...


class Lines:
    """Lines for pipes and log files: at each change of a job's stage, every ten percent, and at its end."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._last: dict[tuple[int, str], tuple[object, int]] = {}

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None

    def show(self, job: WatchedJob) -> None:
        words = self._news(job)
        if words:
            click.echo(printable(f"{self._names[job.host]} {job.volume_name or job.job_id}: {words}"))
            flush()

    def _news(self, job: WatchedJob) -> str | None:
        if job.status == "completed":
            return outcome(job.job)
        progress = job.job.get("progress") or {}
        is_over = job.status in {"failed", "cancelled"}
        mark = (job.status if is_over else progress.get("stage"), int((stage_percent(progress) or 0) // 10))
        key = (job.host, job.job_id)
        if self._last.get(key) == mark or not (progress or is_over):
            return None
        self._last[key] = mark
        return job.status if is_over else ", ".join([headline(progress), *facts(progress, job.rate)])

    def note(self, text: str) -> None:
        click.echo(printable(text), err=True)

    def draw(self, jobs: Sequence[WatchedJob]) -> None:
        """Print nothing."""

    def end(self, jobs: Sequence[WatchedJob]) -> None:
        """Print nothing."""


class Objects(Lines):
    """The API's job at each change with its host, one on each line."""

    def show(self, job: WatchedJob) -> None:
        print_object(self._names[job.host], job.job)
        flush()


class Table(Lines):
    """A table that is redrawn in place, of as many jobs as fit; at the end one with the results of all."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self._screen = Screen()
        self._note = ""

    def __enter__(self) -> None:
        self._screen.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._screen.__exit__(*exc)

    def show(self, job: WatchedJob) -> None:
        """Wait for the next ``draw``."""

    def note(self, text: str) -> None:
        self._note = text

    def draw(self, jobs: Sequence[WatchedJob]) -> None:
        if "q" in self._screen.pressed():
            raise KeyboardInterrupt
        width, height = self._screen.size()
        counts = [(status, sum(job.status == status for job in jobs)) for status in _ORDER]
        summary = ", ".join(f"{count} {status}" for status, count in counts if count)
        lines = [summary, *table_lines(self._names, sorted(jobs, key=_urgency), width)]
        if len(lines) > height - 1:
            hidden = len(lines) - (height - 2)
            lines = [*lines[: height - 2], f"and {hidden} more"]
        self._screen.draw([*lines, printable(self._note)])

    def end(self, jobs: Sequence[WatchedJob]) -> None:
        rows = [
            [self._names[job.host], job.volume_name, "unknown" if job.lost else job.status, _where(job)] for job in jobs
        ]
        if rows:
            print_rows(["HOST", "VOLUME", "STATUS", "RESULT"], rows)


def _urgency(job: WatchedJob) -> int:
    return -1 if job.lost else _ORDER.get(job.status, 0)


def _where(job: WatchedJob) -> object:
    volume = job.job.get("volume") or {}
    return volume.get("path") or job.job.get("image_path") or job.job.get("error") or job.lost


def table_lines(names: Sequence[str], jobs: Sequence[WatchedJob], width: int) -> list[str]:
    """Return a table of jobs that is no wider than ``width``; columns on the right are left out first."""
    rows = []
    for job in jobs:
        progress = job.job.get("progress") or {}
        percent = stage_percent(progress)
        is_running = job.status == "running" and job.lost is None
        rows.append(
            [
                names[job.host],
                job.volume_name or job.job_id[:8],
                "no answer" if job.lost else _stage(job) if is_running else job.status,
                f"{int(percent)} %" if is_running and percent is not None else "",
                f"{size(job.rate)}/s" if job.rate else "",
                span(progress["eta_sec"]) if is_running and progress.get("eta_sec") else "",
            ]
        )
    return fitted(["HOST", "VOLUME", "STAGE", "DONE", "RATE", "LEFT"], rows, width)


def _stage(job: WatchedJob) -> str:
    return str((job.job.get("progress") or {}).get("stage") or job.status).replace("_", " ")


def display_of(names: Sequence[str], *, as_json: bool) -> JobDisplay:
    """Return the display that fits standard output."""
    if as_json:
        return Objects(names)
    return Table(names) if can_redraw(os.environ) else Lines(names)
