"""The page of ``lvp top``: a line with the sums, the hosts, and the active jobs. Pure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.fleet.job_displays import table_lines
from provisioner.cli.fleet.screen import cut, fitted
from provisioner.cli.formatting import printable, size, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.cli.fleet.host_view import HostView

# Percent of a target's space or of a thin pool from which a line is coloured.
_WARM, _HOT = 80.0, 95.0
# Those that are left out first stand last.
_HEADER = ["HOST", "STATE", "RUN", "QUEUE", "RATE", "FULL", "FREE", "TARGET", "POOL", "DONE", "FAILED", "VERSION"]


def page(views: Sequence[HostView], width: int, height: int, *, colors: bool) -> list[str]:
    """Return the lines of the page: at most ``height``, each at most ``width`` wide."""
    jobs = [(view.name, job) for view in views for job in view.jobs.values()]
    jobs.sort(key=lambda one: one[1].status != "running")
    room = height - 1
    for_jobs = min(len(jobs) + 2, max(room // 2, room - len(views) - 1)) if jobs and room >= 6 else 0
    lines = [_styled(cut(_summary(views), width), colors, bold=True)]
    lines += _host_lines(views, width, room - for_jobs, colors=colors)
    if for_jobs:
        shown = jobs[: for_jobs - 2] if len(jobs) > for_jobs - 2 else jobs
        lines.append("")
        lines += _job_lines(shown, width)
    return lines[:height]


def snapshot(views: Sequence[HostView]) -> list[str]:
    """Return all of it as lines of any width, without colours."""
    lines = [_summary(views), *table(_HEADER, [_cells(view) for view in views]).split("\n")]
    names = [view.name for view in views for _ in view.jobs]
    jobs = [job for view in views for job in view.jobs.values()]
    for number, job in enumerate(jobs):
        job.host = number
    return [*lines, *(["", *table_lines(names, jobs, 10_000)] if jobs else [])]


def _summary(views: Sequence[HostView]) -> str:
    away = sum(view.error is not None for view in views)
    hosts = f"{len(views)} host{'' if len(views) == 1 else 's'}" + (f", {away} away" if away else "")
    running, queued = (sum(view.count(status) for view in views) for status in ("running", "pending"))
    rate = sum(view.rate for view in views)
    clock = time.strftime("%H:%M:%S")
    return f"{clock}  {hosts}  {running} running, {queued} queued" + (f", {size(rate)}/s" if rate else "")


def _host_lines(views: Sequence[HostView], width: int, room: int, *, colors: bool) -> list[str]:
    """Return the table of hosts; if there is no room for all, those with trouble and with jobs come first."""
    shown = list(views)
    hidden = 0
    if len(views) > room - 1:
        shown = sorted(views, key=_urgency)[: max(0, room - 2)]
        hidden = len(views) - len(shown)
    lines = fitted(_HEADER, [_cells(view) for view in shown], width)
    coloured = [_styled(lines[0], colors, dim=True)]
    coloured += [_styled(line, colors, fg=_color(view)) for line, view in zip(lines[1:], shown, strict=True)]
    return [*coloured, *([cut(f"and {hidden} more hosts", width)] if hidden else [])]


def _job_lines(jobs: Sequence[tuple[str, Any]], width: int) -> list[str]:
    for number, (_, job) in enumerate(jobs):
        job.host = number
    return table_lines([name for name, _ in jobs], [job for _, job in jobs], width)


def _cells(view: HostView) -> list[object]:
    fullest = view.fullest()
    target: Mapping[str, Any] = fullest[0] if fullest else {}
    pool = target.get("thin_pool") or {}
    known = view.error is None and bool(view.health)
    return [
        view.name,
        view.state(),
        view.count("running") if known else "",
        view.count("pending") if known else "",
        f"{size(view.rate)}/s" if view.rate else "",
        f"{fullest[1]:.0f} %" if fullest and known else "",
        size(target["free_bytes"]) if "free_bytes" in target and known else "",
        target.get("name") if known else "",
        ", ".join(f"{key.removesuffix('_percent')} {value:.0f} %" for key, value in pool.items()) if known else "",
        view.ended.get("completed", ""),
        view.ended.get("failed", ""),
        printable(view.health.get("version", "")),
    ]


def _urgency(view: HostView) -> int:
    if view.error is not None:
        return 0
    fullest = view.fullest()
    if view.state() == "target bad" or (fullest and fullest[1] >= _HOT):
        return 1
    return 2 if view.jobs else 3


def _color(view: HostView) -> str | None:
    fullest = view.fullest()
    fill = fullest[1] if fullest else 0.0
    if view.error is not None or view.state() == "target bad" or fill >= _HOT:
        return "red"
    return "yellow" if fill >= _WARM else None


def _styled(text: str, colors: bool, **style: Any) -> str:
    return click.style(text, **style) if colors and any(style.values()) else text
