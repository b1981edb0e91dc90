"""Tests of following a job by events, and of polling where there are none."""

from __future__ import annotations

import pytest

from provisioner.cli.client import Client
from provisioner.cli.client_settings import ClientSettings
from provisioner.cli.following import follow
from tests.provisioner.cli.conftest import EXAMPLES, HELD_BACK
from tests.provisioner.cli.test_polling import JOB_ID, JOB_PATH, Clock

EVENTS_PATH = f"{JOB_PATH}/events"
STREAM = EXAMPLES["JobEvents"]
SNAPSHOT = "".join(STREAM.partition("event: job.progress")[:1])
STOPPING = "id: 1-2\nevent: service.stopping\ndata: {}\n\n"
END = 'event: end\ndata: {"reason":"service stopped","message":"x"}\n\n'


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setattr("provisioner.cli.client.REPEAT_PAUSES", ())
    return Client(ClientSettings(server.url))


@pytest.fixture
def stream(server, monkeypatch):
    """Return a function that sets the event streams of the job."""

    def set_streams(*texts):
        for number, text in enumerate(texts):
            monkeypatch.setitem(EXAMPLES, f"stream {number}", text)
        server.on("GET", EVENTS_PATH, *(f"stream {number}" for number in range(len(texts))))

    return set_streams


def seen(client, clock=None):
    return [job.data["status"] for job in follow(client, JOB_ID, (clock or Clock()).retry_window(120))]


def paths(server):
    return [request.path for request in server.requests]


def test_follow_to_the_end(client, server, stream):
    """One request and one stream; the objects are those of the API, and those that tell nothing new are left out."""
    server.on("GET", JOB_PATH, "JobRunning")
    stream(STREAM)
    texts = [job.text for job in follow(client, JOB_ID, Clock().retry_window(120))]
    assert len(texts) == 3  # what the request and the snapshot said, and the end; the progress was that of the snapshot
    assert all(text in STREAM for text in texts[1:])
    assert paths(server) == [JOB_PATH, EVENTS_PATH]


def test_follow_an_ended_job(client, server):
    server.on("GET", JOB_PATH, "JobCompleted")
    assert seen(client) == ["completed"]
    assert paths(server) == [JOB_PATH]


@pytest.mark.parametrize(
    "answer", [(404, {"error": "not found"}), (429, "StreamShareUsed"), (503, "StreamsFull"), (200, b"<html>"), None]
)
def test_follow_without_events(client, server, answer):
    """An older server, one with too many readers, or a proxy with words of its own."""
    server.on("GET", EVENTS_PATH, answer)
    server.on("GET", JOB_PATH, "JobRunning", "JobRunning", "JobCompleted")
    assert seen(client) == ["running", "completed"]
    assert paths(server) == [JOB_PATH, EVENTS_PATH, JOB_PATH, JOB_PATH]


def test_follow_through_a_proxy_that_keeps_back(client, server, monkeypatch):
    """No event within the limit: the job is polled from then on."""
    monkeypatch.setattr("provisioner.cli.client.EVENT_TIMEOUT", 0.2)
    server.on("GET", EVENTS_PATH, HELD_BACK)
    server.on("GET", JOB_PATH, "JobRunning", "JobCompleted")
    assert seen(client) == ["running", "completed"]
    assert paths(server) == [JOB_PATH, EVENTS_PATH, JOB_PATH]


def test_follow_over_a_restart(client, server, stream, capsys):
    """The stream ends with the service; the job is asked for until it answers, and then followed again."""
    server.on("GET", JOB_PATH, "JobRunning", (503, "ShuttingDown"), (503, "ShuttingDown"), "JobPending")
    stream(SNAPSHOT + STOPPING + END, STREAM)
    found = seen(client)
    assert (found[0], found[-1]) == ("running", "completed")
    assert paths(server) == [JOB_PATH, EVENTS_PATH, JOB_PATH, JOB_PATH, JOB_PATH, EVENTS_PATH]
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "server is stopping; the job ends in time, or runs again after the restart"


def test_follow_a_stream_that_breaks_off(client, server, stream):
    """What was sent counts; the end is asked for."""
    server.on("GET", JOB_PATH, "JobRunning", "JobCompleted")
    stream(SNAPSHOT + "id: 1-3\nevent: job.comp")
    assert seen(client)[-1] == "completed"
    assert paths(server) == [JOB_PATH, EVENTS_PATH, JOB_PATH]


@pytest.mark.parametrize("data", ["{}", "[]", "x", '{"jobs":[]}', '{"jobs":[5]}'])
def test_follow_a_foreign_stream(client, server, stream, data):
    server.on("GET", JOB_PATH, "JobRunning", "JobCompleted")
    stream(f"event: snapshot\ndata: {data}\n\n")
    assert seen(client) == ["running", "completed"]


def test_unknown_kinds_are_ignored(client, server, stream):
    server.on("GET", JOB_PATH, "JobRunning")
    stream("event: job_of_tomorrow\ndata: {}\n\n: comment\n\nretry: 5\n\n" + STREAM)
    assert seen(client)[-1] == "completed"
