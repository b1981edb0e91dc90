"""Log lines as another process writes them: one event a line, whatever is in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


def test_json_is_one_object_a_line_with_the_ids_in_each():
    events = [json.loads(line) for line in said("json").splitlines()]
    assert [event["event"] for event in events] == ["job accepted", "from outside", "broke"]
    assert all((event["request_id"], event["job_id"]) == ("req-1", "job-1") for event in events)
    assert [event["level"] for event in events] == ["info", "warning", "error"]
    assert all(event["timestamp"].endswith("Z") for event in events)
    assert events[0]["volume"] == "a\nb"
    assert "nothing" not in events[0]
    assert "ValueError: within" in events[2]["exception"]


def test_text_is_one_line_an_event_and_cannot_be_forged():
    lines = said("text").splitlines()
    assert "job accepted" in lines[0]
    assert r"a\nb" in lines[0]
    assert "request_id=req-1" in lines[0]
    assert "from outside" in lines[1]
    assert "request_id=req-1" in lines[1]


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level, count):
    assert len(said("json", level).splitlines()) == count
