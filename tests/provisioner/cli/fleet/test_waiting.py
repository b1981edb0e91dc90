"""Tests of waiting for jobs on many hosts: by events, by polling, and through every kind of silence."""

from __future__ import annotations

import json

import pytest

from provisioner.cli.fleet import feeds, waiting
from provisioner.cli.fleet.waiting import WatchedJob, wait_for_jobs
from tests.provisioner.cli.conftest import EXAMPLES, HELD_BACK
from tests.servers.broken import broken_server, dripping, silent

JOB_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
JOBS, EVENTS = "/api/v1/jobs", "/api/v1/events"
NONE = {"jobs": [], "count": 0, "offset": 0, "limit": 1000}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    for name in ("_POLL", "_POLL_PER_HOST", "_FIRST_RETRY", "_LONGEST_RETRY"):
        monkeypatch.setattr(feeds, name, 0.01)


@pytest.fixture
def stream(server, monkeypatch):
    """Return a function that sets the event stream of the host."""

    def set_stream(*events, status=200):
        text = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in events)
        monkeypatch.setitem(EXAMPLES, "stream", text)
        server.on("GET", EVENTS, "stream", status=status)

    return set_stream


def wait(fleet, patience=60.0, as_json=False):
    jobs = [WatchedJob(number, JOB_ID, "web") for number in range(len(fleet.hosts))]
    return wait_for_jobs(fleet, jobs, patience, as_json=as_json)


def job(status, **more):
    return {"job_id": JOB_ID, "status": status, "volume_name": "web", **more}


def test_by_events(server, fleet_at, stream, capsys):
    """One request for each host and no other; lines have the host."""
    progress = {"stage": "downloading", "percent": 5, "bytes_processed": 50, "bytes_total": 100}
    stream(
        ("snapshot", {"jobs": [job("running", progress=progress)], "active": 1}),
        ("job.running", {**job("running"), "job_id": "another"}),
        ("job.completed", EXAMPLES["JobCompleted"]),
    )
    assert wait(fleet_at(server.url, server.url)) == []
    assert [one.path for one in server.requests] == [EVENTS, EVENTS]
    out, err = capsys.readouterr()
    assert "a web: downloading 50 %, 50 B of 100 B\n" in out
    assert "b web-01: completed: volume web-01 on" in out
    assert err == "2 completed\n"


def test_ended_before_the_stream(server, fleet_at, stream):
    """The snapshot does not have it any more."""
    stream(("snapshot", {"jobs": [], "active": 0}))
    server.on("GET", f"{JOBS}/{JOB_ID}", job("failed", error="no room"))
    assert wait(fleet_at(server.url)) == [("a web", f"job {JOB_ID} failed: no room")]


@pytest.mark.parametrize("answer", [(404, {"error": "not found"}), (503, "StreamsFull"), (200, b"<html>"), None])
def test_by_polling(server, fleet_at, answer):
    server.on("GET", EVENTS, answer)
    server.on("GET", JOBS, {**NONE, "jobs": [job("running")]}, NONE, NONE, NONE)
    server.on("GET", f"{JOBS}/{JOB_ID}", "JobCompleted")
    assert wait(fleet_at(server.url)) == []


def test_through_a_proxy_that_keeps_back(server, fleet_at, monkeypatch):
    monkeypatch.setattr("provisioner.cli.client.EVENT_TIMEOUT", 0.2)
    server.on("GET", EVENTS, HELD_BACK)
    server.on("GET", JOBS, NONE)
    server.on("GET", f"{JOBS}/{JOB_ID}", "JobCompleted")
    assert wait(fleet_at(server.url)) == []


def test_stream_that_breaks_off(server, fleet_at, stream):
    """It is opened again, after a look at the jobs."""
    stream(("snapshot", {"jobs": [job("running")], "active": 1}), ("end", {"reason": "too slow", "message": "x"}))
    server.on("GET", JOBS, {**NONE, "jobs": [job("running")]}, {**NONE, "jobs": [job("running")]}, NONE)
    server.on("GET", f"{JOBS}/{JOB_ID}", "JobCompleted")
    assert wait(fleet_at(server.url)) == []
    assert [one.path for one in server.requests].count(EVENTS) >= 2


def test_host_that_is_away(fleet_at, capsys):
    """Said once; after the patience its jobs are lost."""
    ((place, reason),) = wait(fleet_at("http://127.0.0.1:9"), patience=0.3)
    assert (place, reason.split(";")[0]) == ("a web", f"job {JOB_ID} continues there")
    assert capsys.readouterr().err.count("no answer, retrying for") <= 1


def test_revoked_token_is_final(server, fleet_at):
    server.on("GET", JOBS, "Unauthorized", status=401)
    ((_, reason),) = wait(fleet_at(server.url))
    assert "continues there" in reason
    assert [one.path.partition("?")[0] for one in server.requests] == [EVENTS, JOBS]


@pytest.mark.parametrize("serve", [silent, dripping])
def test_nothing_is_heard(fleet_at, monkeypatch, serve):
    """A host whose thread is stuck is given up after the time limit."""
    monkeypatch.setattr(waiting, "SILENCE", 0.2)
    with broken_server(serve) as address:
        ((_, reason),) = wait(fleet_at(f"http://{address}"), patience=0.1)
    assert reason == f"job {JOB_ID} continues there; nothing was heard from the host for 0 s"


@pytest.mark.parametrize("data", [{"jobs": [5]}, {"jobs": 5}, [], {"jobs": [{"job_id": JOB_ID}]}])
def test_stream_of_something_else(server, fleet_at, stream, data):
    stream(("snapshot", data))
    ((_, reason),) = wait(fleet_at(server.url))
    assert reason.endswith("the answer is not one of the service")


def test_fields_of_other_types(server, fleet_at, stream):
    """Of a later version, for example: what is understood is shown."""
    strange = job("running", progress={"stage": "downloading", "bytes_total": "much", "percent": None}, volume=[])
    stream(("snapshot", {"jobs": [strange], "active": 1}), ("job.completed", job("completed", volume="x", progress=7)))
    assert wait(fleet_at(server.url)) == []


def test_objects(server, fleet_at, stream, capsys):
    stream(("snapshot", {"jobs": [job("running")], "active": 1}), ("job.completed", job("completed")))
    wait(fleet_at(server.url), as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["host"], row["status"]) for row in rows] == [("a", "running"), ("a", "completed")]


@pytest.mark.parametrize(
    ("soft", "hard", "streams", "limit"),
    [
        (1024, 4096, 200, 1024),  # enough
        (100, 4096, 200, 296),  # raised
        (100, 200, 104, 200),  # raised as far as is allowed
        (50, 50, 0, 50),  # all are polled
        (100, -1, 200, 296),
        (-1, -1, 200, -1),
    ],
)
def test_streams_fit_the_descriptors(monkeypatch, soft, hard, streams, limit):
    limits = [(soft, hard)]
    monkeypatch.setattr("resource.getrlimit", lambda _what: limits[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _what, pair: limits.append(pair))
    assert feeds.streams_for(200, 96) == streams
    assert limits[-1] == (limit, hard)


def test_without_descriptors_for_streams(server, fleet_at, monkeypatch):
    """Hosts beyond the limit are polled."""
    monkeypatch.setattr(feeds, "streams_for", lambda hosts, reserve: 0)
    server.on("GET", JOBS, NONE)
    server.on("GET", f"{JOBS}/{JOB_ID}", "JobCompleted")
    assert wait(fleet_at(server.url)) == []
    assert EVENTS not in [one.path for one in server.requests]
