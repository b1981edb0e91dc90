"""Tests that fields reach the journal completely, and that no value can forge a field."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from provisioner.observe.journal import frame, is_ours


def read(datagram):
    """Parse a datagram as the journal does."""
    fields = {}
    while datagram:
        name, _, datagram = datagram.partition(b"\n")
        length = int.from_bytes(datagram[:8], "little")
        fields[name.decode()] = datagram[8 : 8 + length].decode()
        assert datagram[8 + length : 9 + length] == b"\n"
        datagram = datagram[9 + length :]
    return fields


def test_frame_any_value():
    said = {"MESSAGE": "two\nlines\nPRIORITY=0", "LVP_EMPTY": "", "LVP_UMLAUT": "ä"}
    assert read(frame(said)) == said


def test_frame_invalid_names():
    assert read(frame({"lvp_job-id": 7})) == {"LVP_JOB_ID": "7"}


def test_is_ours_checks_journal_stream(monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not is_ours()
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    assert not is_ours()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_journal_fields_by_log_format(tmp_path, log_format):
    code = f"""
import os, structlog
from provisioner.observe import journal, logs
journal.SOCKET = {str(tmp_path / "socket")!r}
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{{status.st_dev}}:{{status.st_ino}}"
logs.configure({log_format!r}, "info")
log = structlog.get_logger("here")
log.debug("not said")
with structlog.contextvars.bound_contextvars(job_id="f47ac"):
    log.warning("rolled back", volume="web-01", nothing=None)
logs.set_level("error")
log.warning("not said either")
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        journal.setblocking(False)
        ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
        if log_format == "json":
            assert json.loads(ended.stderr)["job_id"] == "f47ac"
            return
        fields = read(journal.recv(65536))
        with pytest.raises(BlockingIOError):
            journal.recv(65536)
    assert ended.stderr == ""
    assert fields["LVP_JOB_ID"] == "f47ac"
    assert fields["LVP_VOLUME"] == "web-01"
    assert fields["PRIORITY"] == "4"
    assert fields["MESSAGE"] == "rolled back job_id=f47ac volume=web-01"
    assert set(fields) == {
        "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "LOGGER", "LVP_JOB_ID", "LVP_VOLUME",
    }  # fmt: skip


STUCK = """
import os, sys, structlog
from provisioner.observe import journal, line_writer, logs
journal.SOCKET = sys.argv[1]
line_writer.HUNG_AFTER = 0.0
logs.flush.__defaults__ = (0.1,)
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
logs.configure("text", "info")
log = structlog.get_logger("here")
counted = []
logs.report_drops(lambda sink, count: counted.append((sink, count)))
for number in range(10_000):
    log.info("flood", number=number, filler="x" * 300)
(warning,) = logs.warnings()
print({sink for sink, _ in counted}, sum(count for _, count in counted) > 0, warning.rpartition(" for ")[0])
"""


def test_journal_not_read(tmp_path):
    """A journal that does not read blocks neither the process nor its exit; dropped lines are counted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind(str(tmp_path / "socket"))
        done = subprocess.run(
            [sys.executable, "-c", STUCK, str(tmp_path / "socket")],
            capture_output=True, check=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.stdout == "{'journal'} True the log (journal) has accepted nothing\n"


def test_journal_fields_are_escaped(tmp_path):
    code = f"""
import os, structlog
from provisioner.observe import journal, logs
journal.SOCKET = {str(tmp_path / "socket")!r}
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{{status.st_dev}}:{{status.st_ino}}"
logs.configure("text", "info")
structlog.get_logger("here").warning("bad \\x1b", correlation_id="a\\u202eb\\x00")
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
        fields = read(journal.recv(65536))
    assert all(value.isprintable() for value in fields.values())
    assert fields["LVP_CORRELATION_ID"] == r"'a\u202eb\x00'"
