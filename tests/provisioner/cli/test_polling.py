"""Tests of polling a job while the server restarts, with a mock clock."""

from __future__ import annotations

import pytest

from provisioner.cli.client import Answer, ApiError, Client
from provisioner.cli.client_settings import ClientSettings
from provisioner.cli.polling import LONGEST_PAUSE, LONGEST_RETRY, RetryWindow, poll
from provisioner.cli.progress import Lines, Speed, fit, headline
from provisioner.cli.transport import UnreachableError

JOB_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"  # as in api.yaml's examples
JOB_PATH = f"/api/v1/jobs/{JOB_ID}"


class Clock:
    """A clock that advances only in sleeps; ``at`` has functions to call when the nth sleep begins."""

    def __init__(self, at=None):
        self.time, self.slept, self.at = 0.0, [], at or {}

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds
        self.at.get(len(self.slept), lambda: None)()

    def retry_window(self, limit):
        return RetryWindow(limit, lambda: self.time, self.sleep)


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setattr("provisioner.cli.client.REPEAT_PAUSES", ())
    return Client(ClientSettings(server.url))


def statuses(client, clock, limit=120.0):
    return [job.data["status"] for job in poll(client, JOB_ID, clock.retry_window(limit))]


def test_poll_across_restart(client, server, capsys):
    server.on("GET", JOB_PATH, "JobRunning")

    def comes_back():
        server.on("GET", JOB_PATH, (503, "ShuttingDown"), None, (200, "JobPending"), (200, "JobCompleted"))
        server.start()

    clock = Clock({1: server.stop, 4: comes_back})
    assert statuses(client, clock) == ["running", "pending", "completed"]
    err = capsys.readouterr().err
    first, second, _ = err.splitlines()  # each change of state once, not at every attempt
    assert first.startswith(
        "server not answering, retrying for 2 min 00 s; the job continues there (nothing listens at"
    )
    assert second.startswith("server is stopping, retrying for 1 min 5")


def test_poll_while_the_server_stops(client, server, capsys):
    """The server answers for its jobs until they end, and only /readyz says that it is stopping."""
    server.on("GET", JOB_PATH, *["JobRunning"] * 30, "JobCompleted")
    message = "not ready: the service is shutting down"
    server.on("GET", "/readyz", {"error": "service unavailable", "message": message, "code": 503}, status=503)
    assert statuses(client, Clock()) == ["running", "completed"]
    said = "server is stopping; the job ends in time, or runs again after the restart\n"
    assert capsys.readouterr().err == said
    asked = [request.path for request in server.requests].count("/readyz")
    assert 1 < asked < 8


def test_poll_of_ready_server_says_nothing(client, server, capsys):
    server.on("GET", JOB_PATH, *["JobRunning"] * 30, "JobCompleted")
    message = "not ready: target 'fast': the volume group is missing"
    server.on("GET", "/readyz", {"error": "service unavailable", "message": message, "code": 503}, status=503)
    assert statuses(client, Clock()) == ["running", "completed"]
    assert capsys.readouterr().err == ""


def test_poll_gives_up(client, server):
    server.on("GET", JOB_PATH, "JobRunning")
    clock = Clock({1: server.stop})
    with pytest.raises(UnreachableError):
        statuses(client, clock, limit=60)
    assert 60 <= clock.time < 60 + LONGEST_RETRY + 1


def test_poll_first_request_fails(client, server):
    server.stop()
    clock = Clock()
    with pytest.raises(UnreachableError):
        statuses(client, clock)
    assert clock.slept == []


def test_poll_final_error(client, server):
    server.on("GET", JOB_PATH, (200, "JobRunning"), (404, "JobNotFound"))
    with pytest.raises(ApiError, match="job not found"):
        statuses(client, Clock())


def test_poll_pauses_grow(client, server):
    server.on("GET", JOB_PATH, *["JobRunning"] * 30, "JobCompleted")
    clock = Clock()
    assert statuses(client, clock) == ["running", "completed"]
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[-1] == LONGEST_PAUSE


def test_speed_per_stage():
    clock = Clock()
    speed = Speed(lambda: clock.time)
    looks = [("downloading", 0), ("downloading", 100), ("downloading", 200), ("converting", 50), ("converting", 100)]
    seen = []
    for stage, done in looks:
        seen.append(speed.update({"stage": stage, "bytes_processed": done}))
        clock.sleep(2)
    assert seen == [None, 50, 50, None, 25]


def test_speed_without_bytes(examples):
    assert Speed().update(examples["JobPending"]["progress"]) is None


def test_headline_has_words():
    assert headline({"stage": "checking_cache"}) == "checking cache"


def test_percent_belongs_to_the_bytes(examples, capsys):
    """The API's percent is that of the whole job; beside a stage's bytes it would be wrong."""
    progress = {"stage": "converting", "percent": 75.0, "bytes_processed": 512, "bytes_total": 2048}
    Lines().show(Answer("", {**examples["JobRunning"], "progress": progress}))
    assert capsys.readouterr().out == "converting 25 %, 512 B of 2 KiB\n"


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_bar_fits_the_terminal(columns):
    words = [" 50 %", "1023 MiB of 1023 GiB", "1023 MiB/s", "59 min 59 s left"]
    text, gauge = fit(words, columns)
    assert text.startswith(" 50 %")
    assert 14 + 1 + gauge + 1 + len(text) < columns
    assert columns < 120 or text == "  ".join(words)
