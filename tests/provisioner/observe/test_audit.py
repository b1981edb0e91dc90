"""The audit log: whole lines, in order, private, surviving rotation."""

import json
import logging

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
