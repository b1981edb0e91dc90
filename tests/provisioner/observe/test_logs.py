"""Tests of log lines written by another process: one event per line, whatever its content."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # new processes

SCRIPT = """
import logging, structlog, sys
from provisioner.observe import logs
logs.configure(sys.argv[1], sys.argv[2])
log = structlog.get_logger("provisioner.x")
log.debug("hidden")
with structlog.contextvars.bound_contextvars(request_id="req-1", job_id="job-1"):
    log.info("job accepted", volume="a\\nb", nothing=None)
    logging.getLogger("hypercorn.access").info("chatter")
    logging.getLogger("a.library").warning("from %s", "outside")
    try:
        raise ValueError("within")
    except ValueError as error:
        log.error("broke", exc_info=error)
"""


def said(log_format, level="info"):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, log_format, level], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""
    return done.stderr


def test_json_lines_have_ids():
    events = [json.loads(line) for line in said("json").splitlines()]
    assert [event["event"] for event in events] == ["job accepted", "from outside", "broke"]
    assert all((event["request_id"], event["job_id"]) == ("req-1", "job-1") for event in events)
    assert [event["level"] for event in events] == ["info", "warning", "error"]
    assert all(event["timestamp"].endswith("Z") for event in events)
    assert events[0]["volume"] == "a\nb"
    assert "nothing" not in events[0]
    assert "ValueError: within" in events[2]["exception"]


def test_text_lines_cannot_be_forged():
    lines = said("text").splitlines()
    assert "job accepted" in lines[0]
    assert r"a\nb" in lines[0]
    assert "request_id=req-1" in lines[0]
    assert "from outside" in lines[1]
    assert "request_id=req-1" in lines[1]


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level, count):
    assert len(said("json", level).splitlines()) == count


FLOOD = """
import os, sys, time, structlog
from provisioner.observe import logs
logs.LAST_LINES = 0.1
logs.flush.__defaults__ = (0.1,)
logs.configure("json", "info")
log = structlog.get_logger("here")
counted = []
logs.report_drops(lambda sink, count: counted.append((sink, count)))
started = time.monotonic()
for number in range(20_000):
    log.info("flood", number=number, filler="x" * 300)
seconds = time.monotonic() - started
dropped = sum(count for _, count in counted)
print({sink for sink, _ in counted}, dropped > 0, flush=True)
"""


def test_full_pipe_not_read():
    """An unread log blocks neither the process nor its exit; dropped lines are counted."""
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=writer, text=True, check=True, timeout=60
        )
    finally:
        os.close(writer)
        os.close(reader)
    assert done.stdout == "{'stderr'} True\n"


def test_pipe_read_again():
    """Order is kept, and one line reports the number of missing ones."""
    code = FLOOD.replace("0.1", "60.0")  # the end waits for the reader
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "{'stderr'} True\n"  # only then read its log
        events = [json.loads(line) for line in process.stderr]
    assert process.returncode == 0
    numbers = [event["number"] for event in events if event["event"] == "flood"]
    missing = [event["event"] for event in events if event["event"] != "flood"]
    assert numbers == list(range(len(numbers)))
    assert missing == [f"{20_000 - len(numbers)} log lines were dropped: stderr did not accept them"]


HOSTILE = """
import logging, structlog, sys
from provisioner.observe import logs
logs.configure(sys.argv[1], "info")
bad = "\\x1b]0;owned\\x07\\x1b[2J\\x00 \\u202egnp.exe\\x9b\\x7f\\n2026-01-01 [info] forged"
with structlog.contextvars.bound_contextvars(request_id=bad):
    log = structlog.get_logger("here")
    log.info("job accepted", correlation_id=bad, inside=[bad], also={bad: bad})
    log.info(bad)
    log.info("key", **{bad: 1})
    logging.getLogger("a.library").warning("said %s", bad)
    try:
        raise ValueError(bad)
    except ValueError as error:
        log.error("broke", exc_info=error)
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_control_characters_are_escaped(log_format):
    """Whatever a client sends, only printable characters and line ends reach the log."""
    done = subprocess.run([sys.executable, "-c", HOSTILE, log_format], capture_output=True, check=True, timeout=60)
    lines = done.stderr.decode().splitlines()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert sum(not line.startswith("    ") for line in lines) == 5  # a traceback is indented
    assert "x1b" in lines[0] or "u001b" in lines[0]


UNRAISABLE = """
import warnings
from provisioner.observe import logs
logs.configure("json", "info")
class Broken:
    def __del__(self):
        raise ValueError("in a finalizer")
broken = Broken()
del broken
warnings.warn("deprecated")
"""


def test_finalizer_errors_are_logged():
    """Python itself would print them to standard error, and block if that is not read."""
    done = subprocess.run([sys.executable, "-c", UNRAISABLE], capture_output=True, text=True, check=True, timeout=60)
    broken, warned = (json.loads(line) for line in done.stderr.splitlines())
    assert "ValueError: in a finalizer" in broken["exception"]
    assert "deprecated" in warned["event"]
