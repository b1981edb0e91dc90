"""Tests of tables and pages that fit a terminal, whatever its size."""

from __future__ import annotations

import re

import pytest

from provisioner.cli.fleet.host_view import HostView, fill_of
from provisioner.cli.fleet.screen import cut, fitted, width_of
from provisioner.cli.fleet.top_page import page, snapshot

HEADER = ["HOST", "STAGE", "RATE", "LEFT"]
ROWS = [["kvm-01.example.org", "downloading", "120 MiB/s", "2 min 05 s"], ["b", None, "", "x\x1b[31my"]]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab~"),
        ("abcd", 1, "~"),
        ("abc", 0, ""),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本~"),
    ],
)
def test_cut(text, width, shown):
    assert cut(text, width) == shown
    assert width_of(cut(text, width)) <= width


def test_width_of_combining_characters():
    assert width_of("e\u0301") == 1


@pytest.mark.parametrize("width", [1, 10, 20, 40, 60, 80, 200])
def test_table_fits(width):
    lines = fitted(HEADER, ROWS, width)
    assert len(lines) == 3
    assert max(map(width_of, lines)) <= max(width, 4)
    assert lines[0].startswith(("HOST", "H", "~"))
    assert "\x1b" not in "".join(lines)


def test_table_with_room_is_whole():
    assert fitted(HEADER, ROWS, 200)[1] == "kvm-01.example.org  downloading  120 MiB/s  2 min 05 s"


def views(count=20):
    """Hosts of which the last is away, the one before is full, and the one before that has a job."""
    made = [HostView(f"kvm-{number:02}", health={"status": "healthy", "version": "1"}) for number in range(count)]
    for view in made:
        view.targets = [{"name": "fast", "healthy": True, "size_bytes": 100, "free_bytes": 50}]
    made[-1].error = "nothing listens"
    made[-2].targets = [
        {"name": "a", "size_bytes": 100, "free_bytes": 90},
        {
            "name": "fast",
            "size_bytes": 100,
            "free_bytes": 50,
            "thin_pool": {"data_percent": 50.0, "metadata_percent": 97},
        },
    ]
    progress = {"stage": "downloading", "bytes_processed": 5, "bytes_total": 10}
    made[-3].hear({"job_id": "1", "status": "running", "volume_name": "web", "progress": progress})
    made[-3].hear({"job_id": "2", "status": "pending", "volume_name": "db"})
    return made


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [4, 6, 12, 24, 60])
@pytest.mark.parametrize("colors", [True, False])
def test_page_fits(width, height, colors):
    lines = page(views(), width, height, colors=colors)
    assert len(lines) <= height
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert max(map(width_of, plain)) <= width
    assert ("\x1b" in "".join(lines)) == colors


def test_page_shows_trouble_first():
    """If there is no room for all hosts; else they have the order of the list."""
    lines = page(views(), 100, 12, colors=False)
    named = [line.split()[0] for line in lines if line.startswith("kvm")]
    assert named[:3] == ["kvm-19", "kvm-18", "kvm-17"]
    assert any("more hosts" in line for line in lines)
    lines = page(views(), 100, 60, colors=False)
    assert [line.split()[0] for line in lines[2:22]] == [f"kvm-{number:02}" for number in range(20)]


def test_page_of_a_host():
    lines = page(views(), 120, 60, colors=False)
    assert lines[0][10:] == "20 hosts, 1 away  1 running, 1 queued"
    by_host = {line.split()[0]: re.split(r" {2,}", line) for line in lines[2:22]}
    assert by_host["kvm-19"][1] == "no answer"
    assert by_host["kvm-18"][4:] == ["97 %", "50 B", "fast", "data 50 %, metadata 97 %", "1"]
    assert by_host["kvm-17"][1:5] == ["healthy", "1", "1", "50 %"]
    assert re.split(r" {2,}", lines[-2])[:4] == ["kvm-17", "web", "downloading", "50 %"]


def test_jobs_that_end_are_counted():
    view = HostView("a")
    for status in ("running", "completed"):
        view.hear({"job_id": "1", "status": status})
    view.hear({"job_id": "old", "status": "failed"})  # had ended before it was seen
    assert (view.ended, view.count("running")) == ({"completed": 1}, 0)


@pytest.mark.parametrize(
    ("target", "fill"),
    [
        ({}, None),
        ({"size_bytes": 0, "free_bytes": 0}, None),
        ({"size_bytes": 100, "free_bytes": 25}, 75.0),
        ({"size_bytes": 100, "free_bytes": 25, "thin_pool": {"data_percent": 80.0}}, 80.0),
    ],
)
def test_fill(target, fill):
    assert fill_of(target) == fill


def test_snapshot_is_not_cut():
    text = "\n".join(snapshot(views()))
    assert "data 50 %, metadata 97 %" in text
    assert "\x1b" not in text
