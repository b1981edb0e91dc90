"""Tests of event streams of a real daemon: many readers, deaf ones, restarts, and the end of the service."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trio

from tests.end_to_end.daemon import TIMEOUT, until
from tests.provisioner.api.events_client import Stream, parse

pytestmark = pytest.mark.slow

READERS = 200
ROOM = {"max_connections": 512, "max_connections_per_address": 400}
STREAMS = {"max_event_streams": 300, "max_event_streams_per_address": 300}


def descriptors(daemon):
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


@contextmanager
def deaf(daemon):
    """Open a stream and read nothing of it."""
    address = urlsplit(daemon.url)
    with socket.socket() as open_socket:
        open_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        open_socket.connect((address.hostname, address.port))
        head = f"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nX-API-Token: {daemon.token}\r\n\r\n"
        open_socket.sendall(head.encode())
        yield open_socket


class Crowd:
    """Many readers of all events on one event loop: ``seen`` has the (kind, job id) of each event of each reader."""

    def __init__(self, daemon, readers):
        self.daemon, self.readers = daemon, readers
        self.seen = [[] for _ in range(readers)]

    async def follow(self, jobs):
        """Open all streams, submit the jobs that ``jobs()`` submits, and read until each reader has seen their ends."""
        limits = httpx.Limits(max_connections=None)
        headers = {"X-API-Token": self.daemon.token}
        options = {"limits": limits, "headers": headers, "timeout": TIMEOUT, "trust_env": False, "verify": False}
        async with httpx.AsyncClient(base_url=self.daemon.url, **options) as client, trio.open_nursery() as nursery:
            for number in range(self.readers):
                await nursery.start(self._read, client, number)
            self.jobs = await trio.to_thread.run_sync(jobs)

    async def _read(self, client, number, task_status):
        async with client.stream("GET", "/api/v1/events") as response:
            assert response.status_code == 200
            events = Stream(response)
            assert (await events.next()).kind == "snapshot"
            task_status.started()
            ends = 0
            while ends < 2:
                event = await events.next()
                self.seen[number].append((event.kind, event.data.get("job_id")))
                ends += event.kind == "job.completed"


def test_200_readers_and_two_jobs(make_daemon, server):
    """Every reader sees every change, one that reads nothing delays no other, and all descriptors are freed."""
    daemon = make_daemon(server={"bind": ["127.0.0.1:0"], **ROOM, **STREAMS}).start()
    daemon.job_ended(daemon.submit(server.of("sparse.raw"), "first", "raw"))
    before = descriptors(daemon)

    def two_jobs():
        return [
            daemon.submit(server.of(name), f"v-{number}") for number, name in enumerate(("zlib.qcow2", "plain.qcow2"))
        ]

    crowd = Crowd(daemon, READERS)
    with deaf(daemon):
        trio.run(crowd.follow, two_jobs)
    expected = [f"job.{status}" for status in ("pending", "running", "completed")]
    for seen in crowd.seen:
        for job in crowd.jobs:
            assert [kind for kind, job_id in seen if job_id == job] == expected
        assert [kind for kind, _ in seen].count("cache.added") == 2
    until(lambda: descriptors(daemon) < before + 10)  # threads of the store may have opened some more
    # The metrics are rendered once a second.
    until(lambda: "libvirt_volume_provisioner_event_readers 0.0" in daemon.call("GET", "/metrics").text)
    assert daemon.stop() == 0


class Follower:
    """A stream that a thread reads to its end; ``whole`` is whether the end was regular."""

    def __init__(self, daemon, path, last=None, *, http2=False):
        self.events, self.whole = [], None
        headers = {"X-API-Token": daemon.token, **({"Last-Event-ID": last} if last else {})}
        self.request = {"url": daemon.url + path, "headers": headers}
        self.client = httpx.Client(http1=not http2, http2=http2, timeout=TIMEOUT, trust_env=False)
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        with self.client, self.client.stream("GET", **self.request) as response:
            text = ""
            try:
                for piece in response.iter_text():
                    *whole, text = (text + piece).split("\n\n")
                    self.events += filter(None, map(parse, whole))
            except httpx.RemoteProtocolError:
                self.whole = False
            else:
                self.whole = True

    def until(self, kind):
        """Wait for an event of the kind; return the first."""
        return until(lambda: next((event for event in self.events if event.kind == kind), None))

    def ended(self):
        """Wait for the end of the stream; return whether it was regular."""
        self.thread.join(TIMEOUT)
        return self.whole


@pytest.fixture
def silent():
    """Yield the url of an image on a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/image.qcow2"


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_restart_while_a_job_is_watched(make_daemon, silent, http2):
    """The stream says that the service stops, and ends; after the restart the same id gets a snapshot of the job."""
    daemon = make_daemon(jobs={"shutdown_grace": "100ms"}).start()
    job_id = daemon.submit(silent, "v")
    path = f"/api/v1/jobs/{job_id}/events"
    first = Follower(daemon, path, http2=http2)
    last = first.until("snapshot").id
    assert daemon.stop() == 0
    assert first.ended()
    kinds = [event.kind for event in first.events if event.kind not in {"job.running", "job.progress"}]
    assert kinds == ["snapshot", "service.stopping", "end"]
    assert first.events[-1].data["reason"] == "service stopped"
    daemon.start()
    again = Follower(daemon, path, last, http2=http2)
    snapshot = again.until("snapshot")
    assert snapshot.id.partition("-")[0] != last.partition("-")[0]
    assert snapshot.data["jobs"][0]["job_id"] == job_id
    assert daemon.call("POST", f"/api/v1/jobs/{job_id}/cancel").status_code == 200
    assert again.ended()
    assert [event.kind for event in again.events[-2:]] == ["job.cancelled", "end"]
    assert daemon.stop() == 0


def test_killed_daemon(make_daemon, server):
    """A client that missed the end of a job learns it from the snapshot."""
    daemon = make_daemon().start()
    job_id = daemon.submit(server.of("zlib.qcow2"), "v")
    first = Follower(daemon, "/api/v1/events")
    last = first.until("snapshot").id
    daemon.job_ended(job_id)
    daemon.kill()
    assert first.ended() is False  # it broke off
    daemon.start()
    again = Follower(daemon, "/api/v1/events", last)
    data = again.until("snapshot").data
    assert [(job["job_id"], job["status"]) for job in data["jobs"]] == [(job_id, "completed")]
    assert daemon.stop() == 0
    assert again.ended()


def test_shutdown_with_a_deaf_reader(daemon, server):
    """A reader that reads nothing does not delay the end of the service."""
    with deaf(daemon):
        daemon.job_ended(daemon.submit(server.of("zlib.qcow2"), "v"))
        assert daemon.stop() == 0


def test_revoked_token(make_daemon):
    """``lvp token revoke`` ends the stream of the token."""
    daemon = make_daemon().start()
    config = str(daemon.folder / "config.toml")
    follower = Follower(daemon, "/api/v1/events")
    follower.until("snapshot")
    assert daemon.lvp("token", "revoke", "client", "--config", config).status == 0
    assert follower.ended()
    assert follower.events[-1].data["reason"] == "access lost"
    assert daemon.stop() == 0
