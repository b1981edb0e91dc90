"""Tests of submits to many hosts: what a key finds, and what a host without an answer costs."""

from __future__ import annotations

import pytest

from provisioner.cli.fleet.failures import Failure
from provisioner.cli.fleet.submission import Request, Submission, batch_key, submit_all

OLD = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
NEW = "5f0c6c2e-6d0e-4bb2-8f0a-3f0d3a1d6a77"
JOBS = "/api/v1/jobs"


def request(host=0, key="k", again=True):
    return Request(host, JOBS, {"volume_name": "v"}, key, again=again)


def keys(server):
    return [one.headers["idempotency-key"] for one in server.requests if one.method == "POST"]


def test_new_job(server, fleet_at):
    server.on("POST", JOBS, {"job_id": NEW}, status=202)
    assert submit_all(fleet_at(server.url), [request()]) == [Submission(NEW, "submitted")]
    assert [(one.method, one.body) for one in server.requests] == [("POST", {"volume_name": "v"})]


@pytest.mark.parametrize(
    ("status", "result"),
    [("pending", "active already"), ("running", "active already"), ("completed", "completed before")],
)
def test_job_of_an_earlier_run(server, fleet_at, status, result):
    server.on("POST", JOBS, "JobRepeated", status=202)
    server.on("GET", f"{JOBS}/{OLD}", {"job_id": OLD, "status": status})
    assert submit_all(fleet_at(server.url), [request()]) == [Submission(OLD, result)]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_earlier_job_did_not_complete(server, fleet_at, status):
    """It is submitted anew, under a key that the next run finds again."""
    server.on("POST", JOBS, (202, "JobRepeated"), (202, {"job_id": NEW}))
    server.on("GET", f"{JOBS}/{OLD}", {"job_id": OLD, "status": status})
    assert submit_all(fleet_at(server.url), [request()]) == [Submission(NEW, "submitted", f"{OLD} {status}")]
    assert keys(server) == ["k", f"k-{OLD}"]


def test_named_image_has_changed(server, fleet_at):
    used = {"error": "conflict", "message": f"the Idempotency-Key was used for another request, job {OLD}", "code": 409}
    server.on("POST", JOBS, used, status=409)
    server.on("GET", f"{JOBS}/{OLD}", {"job_id": OLD, "status": "completed"})
    assert submit_all(fleet_at(server.url), [request()]) == [Submission(OLD, "made from an older image")]
    (refused,) = submit_all(fleet_at(server.url), [request(again=False)])
    assert (refused.code, refused.error) == (409, "refused")


def test_volume_is_busy(server, fleet_at):
    """With another job, which is not of this batch."""
    server.on("POST", JOBS, "VolumeBusy", status=409)
    (refused,) = submit_all(fleet_at(server.url), [request()])
    assert isinstance(refused, Failure)


def test_failing_for_ever(server, fleet_at):
    server.on("POST", JOBS, "JobRepeated", status=202)
    server.on("GET", f"{JOBS}/{OLD}", {"job_id": OLD, "status": "failed"})
    (end,) = submit_all(fleet_at(server.url), [request()])
    assert "use another --idempotency-key" in end.message


def test_host_that_does_not_answer(server, fleet_at):
    """It gets no more requests; a job may have been accepted, which is said. The other host gets all of its own."""
    server.on("POST", JOBS, None)
    down, lost = "http://127.0.0.1:9", server.url
    ends = submit_all(fleet_at(down, lost), [request(0), request(1), request(0), request(1)])
    assert [end.error for end in ends] == ["unreachable"] * 4
    assert ends[0].message.startswith("nothing listens")
    assert ends[1].message.endswith("; the job may have been accepted")
    assert ends[2].message == ends[3].message == "not sent, because the request before it failed"
    assert len(server.requests) == 1


def test_wrong_token_is_tried_once(server, fleet_at):
    """Repeated failures would lock this machine out."""
    server.on("POST", JOBS, "Unauthorized", status=401)
    ends = submit_all(fleet_at(server.url), [request(), request()])
    assert ends[0].code == 401
    assert len(server.requests) == 1


def test_refused_request_does_not_end_the_host(server, fleet_at):
    server.on("POST", JOBS, (400, "InvalidField"), (202, {"job_id": NEW}))
    first, second = submit_all(fleet_at(server.url), [request(), request()])
    assert (first.code, second) == (400, Submission(NEW, "submitted"))


def test_batch_keys():
    """The same for the same request, whatever the order of its fields; another name is another run."""
    body = {"volume_name": "v", "image": "i"}
    key = batch_key(body, None)
    assert key == batch_key(dict(reversed(body.items())), None)
    others = {batch_key({**body, "volume_size_gb": 1}, None), batch_key(body, "x"), batch_key(body, "y")}
    assert len(others | {key}) == 4
    assert len(key) <= 255 - 37
