"""Following a job across a server that goes away and comes back, on a clock of the test's own."""

from __future__ import annotations

import pytest

from provisioner.cli.client import ApiError, Client
from provisioner.cli.client_settings import ClientSettings
from provisioner.cli.polling import LONGEST_PAUSE, LONGEST_RETRY, RetryWindow, poll
from provisioner.cli.progress import Speed
from provisioner.cli.transport import UnreachableError

JOB_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"  # as in api.yaml's examples
JOB_PATH = f"/api/v1/jobs/{JOB_ID}"


class Clock:
    """Time passes only in sleeps; ``at`` runs something when the nth sleep begins."""

    def __init__(self, at=None):
        self.time, self.slept, self.at = 0.0, [], at or {}

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds
        self.at.get(len(self.slept), lambda: None)()

    def patience(self, limit):
        return RetryWindow(limit, lambda: self.time, self.sleep)


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setattr("provisioner.cli.client.REPEAT_PAUSES", ())
    return Client(ClientSettings(server.url))


def statuses(client, clock, limit=120.0):
    return [job.data["status"] for job in poll(client, JOB_ID, clock.patience(limit))]


def test_a_restart_is_survived(client, server, capsys):
    server.on("GET", JOB_PATH, "JobRunning")

    def comes_back():
        server.on("GET", JOB_PATH, (503, "ShuttingDown"), None, (200, "JobPending"), (200, "JobCompleted"))
        server.start()

    clock = Clock({1: server.stop, 4: comes_back})
    assert statuses(client, clock) == ["running", "pending", "completed"]
    err = capsys.readouterr().err
    assert err.count("\n") == 1  # said once, not at every try
    assert "nothing listens at" in err
    assert "retrying for 2 min 00 s" in err


def test_patience_ends(client, server):
    server.on("GET", JOB_PATH, "JobRunning")
    clock = Clock({1: server.stop})
    with pytest.raises(UnreachableError):
        statuses(client, clock, limit=60)
    assert 60 <= clock.time < 60 + LONGEST_RETRY + 1


def test_first_look_fails_at_once(client, server):
    server.stop()
    clock = Clock()
    with pytest.raises(UnreachableError):
        statuses(client, clock)
    assert clock.slept == []


def test_a_final_answer_ends_the_waiting(client, server):
    server.on("GET", JOB_PATH, (200, "JobRunning"), (404, "JobNotFound"))
    with pytest.raises(ApiError, match="job not found"):
        statuses(client, Clock())


def test_looks_grow_rarer(client, server):
    server.on("GET", JOB_PATH, *["JobRunning"] * 30, "JobCompleted")
    clock = Clock()
    assert statuses(client, clock) == ["running", "completed"]
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[-1] == LONGEST_PAUSE


def test_speed_is_that_of_the_stage():
    clock = Clock()
    speed = Speed(lambda: clock.time)
    looks = [("downloading", 0), ("downloading", 100), ("downloading", 200), ("converting", 50), ("converting", 100)]
    seen = []
    for stage, done in looks:
        seen.append(speed.update({"stage": stage, "bytes_processed": done}))
        clock.sleep(2)
    assert seen == [None, 50, 50, None, 25]


def test_speed_without_bytes_is_unknown(examples):
    assert Speed().update(examples["JobPending"]["progress"]) is None
