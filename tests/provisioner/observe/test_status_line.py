"""Tests of the line that `systemctl status` shows."""

from __future__ import annotations

import socket

import pytest

from provisioner.contracts import JobEvent
from provisioner.observe.status_line import StatusLine


def event(job_id, status, stage="downloading", volume="web-01"):
    return JobEvent(
        job_id=job_id, status=status, stage=stage, percent=0.0, volume_name=volume, image_url="http://localhost/image",
        correlation_id=None, error=None, at=0.0,
    )  # fmt: skip


async def test_status_line_running_and_waiting(monkeypatch, tmp_path):
    line = StatusLine()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        manager.setblocking(False)
        for happened in (
            event("1", "pending"), event("1", "running"), event("1", "running"), event("2", "pending"),
            event("1", "completed"), event("2", "cancelled"),
        ):  # fmt: skip
            await line.job_changed(happened)
        said = [manager.recv(4096).decode() for _ in range(5)]
        with pytest.raises(BlockingIOError):  # an unchanged line is not sent again
            manager.recv(4096)
    assert said == [
        "STATUS=0 running, 1 waiting",
        "STATUS=1 running, 0 waiting: web-01 downloading",
        "STATUS=1 running, 1 waiting: web-01 downloading",
        "STATUS=0 running, 1 waiting",
        "STATUS=Ready, no jobs",
    ]


async def test_status_line_bounds_lost_jobs(monkeypatch):
    """If the end of a job is lost in a full queue, the job stays in the line; their number is limited."""
    monkeypatch.setattr("provisioner.observe.status_line._MOST", 3)
    line = StatusLine()
    for number in range(10):
        await line.job_changed(event(str(number), "running", volume="a\nREADY=1"))
    assert line.text().startswith("3 running, 0 waiting: ")
    assert line.text().isprintable()
