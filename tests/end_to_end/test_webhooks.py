"""Tests of webhooks of a real daemon: signed, free of secrets, and delivered after a kill at the worst moment."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing

import pytest

from tests.end_to_end.daemon import until
from tests.servers.webhooks import Receiver

pytestmark = pytest.mark.slow

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()


@pytest.fixture
def hooked(make_daemon, tmp_path):
    """Return a receiver that does not listen yet, and a daemon that sends to it."""
    receiver = Receiver(SECRET)
    with receiver.running():
        pass  # takes a port
    (tmp_path / "secret").write_text(SECRET)
    table = {"plugin": "webhook", "url": receiver.url, "secret": f"file:{tmp_path / 'secret'}"}
    return receiver, make_daemon(observers={"ci": table}).start()


def outbox(daemon):
    return sqlite3.connect(daemon.folder / "state" / "webhook-ci.sqlite", isolation_level=None)


def test_webhooks_of_a_job(hooked, server):
    receiver, daemon = hooked
    with receiver.running():
        job_id = daemon.submit(server.of("zlib.qcow2") + "?signature=hidden", "web-01")
        _, body = receiver.wait("job.completed")
        assert daemon.call("PUT", f"/api/v1/cache/images/{digest_of(daemon)}/pin").status_code == 200
        receiver.wait("cache.pinned")
        kinds = [body["type"] for _, body in receiver.received]
        assert kinds == ["job.pending", "job.running", "cache.added", "job.completed", "cache.pinned"]
        assert body["data"]["job_id"] == job_id
        assert body["data"]["volume"]["name"] == "web-01"
        assert receiver.refused == []
        sent = json.dumps(receiver.received) + daemon.log_file.read_text()
        assert "hidden" not in sent
        assert SECRET not in sent
        assert daemon.token not in sent
        assert daemon.stop() == 0


def digest_of(daemon):
    (image,) = daemon.call("GET", "/api/v1/cache/images").json()["images"]
    return image["checksum"]


def test_killed_between_the_end_and_its_webhook(hooked, server):
    """The end of the job is stored, and its message is not in the outbox yet: it is found at the next start."""
    receiver, daemon = hooked
    first = daemon.submit(server.of("zlib.qcow2"), "web-01")
    daemon.job_ended(first)
    with closing(outbox(daemon)) as locked:
        until(lambda: ("msg_" + first + "-completed-1",) in locked.execute("select id from known").fetchall())
        locked.execute("begin exclusive")  # from here on the observer cannot write
        second = daemon.submit(server.of("zlib.qcow2"), "web-02")
        assert daemon.job_ended(second)["status"] == "completed"  # and the job does not wait for it
        daemon.kill()
        locked.execute("rollback")
        known = {row[0] for row in locked.execute("select id from known")}
    assert not any(second in message_id for message_id in known)
    with receiver.running():
        daemon.start()
        until(lambda: f"msg_{second}-completed-1" in {message_id for message_id, _ in receiver.received})
        assert daemon.stop() == 0
    ends = [message_id for message_id, body in receiver.received if body["type"] == "job.completed"]
    assert sorted(ends) == sorted(f"msg_{job_id}-completed-1" for job_id in (first, second))


def test_killed_before_the_delivery(hooked, server):
    """The receiver is away while the job ends; the message waits in the outbox over a kill."""
    receiver, daemon = hooked
    job_id = daemon.submit(server.of("zlib.qcow2"), "web-01")
    assert daemon.job_ended(job_id)["status"] == "completed"
    with closing(outbox(daemon)) as reading:
        until(lambda: (f"msg_{job_id}-completed-1",) in reading.execute("select id from messages").fetchall())
    daemon.kill()
    with receiver.running():
        daemon.start()
        message_id, body = receiver.wait("job.completed")
        assert message_id == f"msg_{job_id}-completed-1"
        assert body["data"]["status"] == "completed"
        assert daemon.stop() == 0
