"""Tests of the audit log: whole lines in order, a private file, and rotation."""

import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from provisioner.config.access import AuditSettings
from provisioner.observe.audit import AuditLog, AuditRecord, is_audited


def a_record(**changes):
    fields = {
        "method": "POST",
        "endpoint": "/api/v1/jobs",
        "status": 202,
        "address": "192.0.2.7",
        "request_id": "r-1",
        "principal": "terraform",
        "role": "operator",
        "via": "token",
    }
    return AuditRecord(**{**fields, **changes})


@pytest.fixture(autouse=True)
def _levels():
    logging.getLogger("audit").setLevel(logging.INFO)


def test_audit_lines_are_json_in_order(tmp_path):
    audit = AuditLog(tmp_path / "audit.log")
    with audit.open():
        for number in range(100):
            audit.note(a_record(request_id=f"r-{number}"))
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [line["request_id"] for line in lines] == [f"r-{number}" for number in range(100)]
    assert lines[0]["principal"] == "terraform"
    assert lines[0]["at"].endswith("+00:00")
    assert "job_id" not in lines[0]


def test_audit_line_break_is_escaped(tmp_path):
    audit = AuditLog(tmp_path / "audit.log")
    with audit.open():
        audit.note(a_record(volume='x\n{"principal": "root"}'))
    (line,) = (tmp_path / "audit.log").read_text().splitlines()
    assert json.loads(line)["volume"].endswith('"root"}')


def test_audit_file_mode(tmp_path):
    with AuditLog(tmp_path / "audit.log").open():
        assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_audit_file_rotated(tmp_path):
    path = tmp_path / "audit.log"
    audit = AuditLog(path)
    with audit.open():
        audit.note(a_record(request_id="before"))
    path.rename(tmp_path / "audit.log.1")
    with audit.open():
        audit.note(a_record(request_id="after"))
    assert "before" in (tmp_path / "audit.log.1").read_text()
    assert "after" in path.read_text()


def test_audit_without_file_goes_to_log(caplog):
    audit = AuditLog(None, to_log=True)
    with caplog.at_level(logging.INFO, logger="audit"), audit.open():
        audit.note(a_record())
    assert json.loads(caplog.messages[0])["status"] == 202


@pytest.mark.parametrize(
    ("settings", "log_format", "expected"),
    [
        ({}, "text", False), ({}, "json", True), ({"file": "/a"}, "json", False), ({"file": "/a"}, "text", False),
        ({"log": True}, "text", True), ({"log": False}, "json", False), ({"file": "/a", "log": True}, "text", True),
    ],
)  # fmt: skip
def test_audit_lines_in_the_log(settings, log_format, expected):
    """A text log has them only if asked for."""
    assert AuditSettings(**settings).goes_to_log(log_format) is expected


def test_audit_to_file_and_log(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="audit"):
        for to_log in (True, False):
            audit = AuditLog(tmp_path / "audit.log", to_log=to_log)
            with audit.open():
                audit.note(a_record())
    assert len(caplog.messages) == 1
    assert len((tmp_path / "audit.log").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        ("GET", 200, False),
        ("HEAD", 404, False),
        ("GET", 401, True),
        ("GET", 403, True),
        ("POST", 202, True),
        ("POST", 400, True),
        ("DELETE", 200, True),
    ],
)
def test_is_audited(method, status, expected):
    assert is_audited(method, status) is expected


def test_audit_ignores_log_level():
    root = logging.getLogger()
    before = root.level
    try:
        root.setLevel(logging.ERROR)
        logging.getLogger("audit").setLevel(logging.NOTSET)
        with AuditLog(None).open():
            assert logging.getLogger("audit").isEnabledFor(logging.INFO)
    finally:
        root.setLevel(before)


def test_audit_disk_full_counts_lost():
    lost = []
    audit = AuditLog(Path("/dev/full"), lost.append)
    with audit.open():
        for _ in range(3):
            audit.note(a_record())
    assert sum(lost) == 3


@pytest.fixture
def pipe(tmp_path):
    """Create a full named pipe; yield its path and a descriptor for reading."""
    path = tmp_path / "audit.pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    filler = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(filler, b"\n" * 4096)
    os.close(filler)
    yield path, reader
    os.close(reader)


def test_audit_pipe_not_read(pipe, monkeypatch):
    """Nothing blocks, lost lines are counted, there is a warning, and closing takes limited time."""
    monkeypatch.setattr("provisioner.observe.line_writer.HUNG_AFTER", 0.0)
    monkeypatch.setattr("provisioner.observe.audit._LAST_LINES", 0.1)
    path, _ = pipe
    lost = []
    audit = AuditLog(path, lost.append)
    started = time.monotonic()
    with audit.open():
        for number in range(30_000):
            audit.note(a_record(request_id=f"r-{number}"))
        during = sum(lost)
        (warning,) = audit.warnings()
    assert during > 0
    assert sum(lost) > during  # the lines still in the queue at the end
    assert warning.startswith(f"the audit log {path} has accepted nothing for ")
    assert time.monotonic() - started < 30


def test_audit_pipe_read_again(pipe, monkeypatch):
    """Order is kept, and one line takes the place of the missing ones."""
    monkeypatch.setattr("provisioner.observe.line_writer.LineWriter.__init__.__defaults__", (100_000,))
    path, reader = pipe
    lost = []
    audit = AuditLog(path, lost.append)
    with audit.open():
        for number in range(1000):
            audit.note(a_record(request_id=f"r-{number}"))
        os.set_blocking(reader, True)
        text, count = b"", sum(lost)
        assert count > 0
        while b'"lost"' not in text or not text.endswith(b"\n"):
            text += os.read(reader, 65536)
        audit.note(a_record(request_id="later"))
        while b"later" not in text:
            text += os.read(reader, 65536)
    lines = [json.loads(line) for line in text.splitlines() if line]
    written = [line["request_id"] for line in lines if line["event"] == "request"]
    assert written == [f"r-{number}" for number in range(1000 - count)] + ["later"]
    assert [line["reason"] for line in lines if line["event"] == "lost"] == [
        f"{count} audit lines could not be written"
    ]
    assert lines[-2]["event"] == "lost"
    assert audit.warnings() == []


def test_audit_pipe_without_reader(tmp_path):
    """The start fails instead of waiting for a reader."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"), AuditLog(tmp_path / "pipe").open():
        pass


def test_audit_line_is_ascii(tmp_path):
    """A right-to-left override in a volume's name does not turn the line around."""
    audit = AuditLog(tmp_path / "audit.log")
    with audit.open():
        audit.note(a_record(volume="a\u202eb\x7f\x9b\x1b"))
    raw = (tmp_path / "audit.log").read_bytes()
    assert raw.isascii()
    assert raw.rstrip(b"\n").decode().isprintable()
    assert json.loads(raw)["volume"] == "a\u202eb\x7f\x9b\x1b"


def test_audit_tokens_are_redacted(tmp_path):
    audit = AuditLog(tmp_path / "audit.log")
    with audit.open():
        audit.note(a_record(request_id="lvp_" + "x" * 43, volume="a-lvp_" + "y" * 43))
    text = (tmp_path / "audit.log").read_text()
    assert "xxx" not in text
    assert "yyy" not in text


def test_audit_folder_removed_and_recreated(tmp_path):
    lost, folder = [], tmp_path / "logs"
    folder.mkdir()
    audit = AuditLog(folder / "audit.log", lost.append)
    with audit.open():
        audit.note(a_record())
        while not (folder / "audit.log").stat().st_size:
            pass
        folder.rename(tmp_path / "away")
        audit.note(a_record())
        while not lost:
            pass
        folder.mkdir()
        audit.note(a_record(request_id="later"))
    assert "later" in (folder / "audit.log").read_text()
    assert sum(lost) == 1
