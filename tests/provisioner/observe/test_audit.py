"""The audit log: whole lines, in order, private, surviving rotation."""

import json
import logging
import logging.handlers
import threading
from pathlib import Path

import pytest

from provisioner.observe.audit import AuditLog, AuditRecord, is_worth_a_line


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


def test_each_record_is_one_json_line_in_order(tmp_path):
    audit = AuditLog(tmp_path / "audit.log")
    with audit.open():
        for number in range(100):
            audit.note(a_record(request_id=f"r-{number}"))
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [line["request_id"] for line in lines] == [f"r-{number}" for number in range(100)]
    assert lines[0]["principal"] == "terraform"
    assert lines[0]["at"].endswith("+00:00")
    assert "job_id" not in lines[0]


def test_a_line_break_in_a_path_cannot_make_a_second_line(tmp_path):
    audit = AuditLog(tmp_path / "audit.log")
    with audit.open():
        audit.note(a_record(volume='x\n{"principal": "root"}'))
    (line,) = (tmp_path / "audit.log").read_text().splitlines()
    assert json.loads(line)["volume"].endswith('"root"}')


def test_nobody_else_can_read_it(tmp_path):
    with AuditLog(tmp_path / "audit.log").open():
        assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_a_rotated_file_is_followed(tmp_path):
    path = tmp_path / "audit.log"
    audit = AuditLog(path)
    with audit.open():
        audit.note(a_record(request_id="before"))
    path.rename(tmp_path / "audit.log.1")
    with audit.open():
        audit.note(a_record(request_id="after"))
    assert "before" in (tmp_path / "audit.log.1").read_text()
    assert "after" in path.read_text()


def test_without_a_file_lines_go_to_the_log(caplog):
    audit = AuditLog(None)
    with caplog.at_level(logging.INFO, logger="audit"), audit.open():
        audit.note(a_record())
    assert json.loads(caplog.messages[0])["status"] == 202


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
def test_what_is_audited(method, status, expected):
    assert is_worth_a_line(method, status) is expected


def test_the_level_of_the_log_does_not_silence_it():
    root = logging.getLogger()
    before = root.level
    try:
        root.setLevel(logging.ERROR)
        logging.getLogger("audit").setLevel(logging.NOTSET)
        with AuditLog(None).open():
            assert logging.getLogger("audit").isEnabledFor(logging.INFO)
    finally:
        root.setLevel(before)


def test_a_full_disk_holds_nobody_up_and_is_counted():
    lost = []
    audit = AuditLog(Path("/dev/full"), lambda: lost.append(1))
    with audit.open():
        for _ in range(3):
            audit.note(a_record())
    assert len(lost) == 3


def test_lines_that_wait_are_bounded(tmp_path, monkeypatch):
    """A disk that hangs: what does not fit is counted, and nobody waits."""
    monkeypatch.setattr("provisioner.observe.audit._BACKLOG", 5)
    held, lost = threading.Event(), []
    audit = AuditLog(tmp_path / "audit.log", lambda: lost.append(1))
    real = logging.handlers.WatchedFileHandler.emit
    monkeypatch.setattr(logging.handlers.WatchedFileHandler, "emit", lambda *args: (held.wait(), real(*args)))
    with audit.open():
        for _ in range(20):
            audit.note(a_record())
        assert 14 <= len(lost) <= 15  # one may be in the writer's hands
        held.set()
    assert len((tmp_path / "audit.log").read_text().splitlines()) == 20 - len(lost)


def test_what_looks_like_a_token_is_left_out(tmp_path):
    audit = AuditLog(tmp_path / "audit.log")
    with audit.open():
        audit.note(a_record(request_id="lvp_" + "x" * 43, volume="a-lvp_" + "y" * 43))
    text = (tmp_path / "audit.log").read_text()
    assert "xxx" not in text
    assert "yyy" not in text


def test_a_folder_that_goes_and_comes_back(tmp_path):
    lost, folder = [], tmp_path / "logs"
    folder.mkdir()
    audit = AuditLog(folder / "audit.log", lambda: lost.append(1))
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
    assert len(lost) == 1
