"""Measures what event streams cost: the time of jobs with many readers, and watching one by events and by polling.

    python contrib/bench/events.py [--readers 200] [--runs 5] [--size 1024]

Starts a daemon and an nginx. In each run two jobs at once download and convert an image, first without readers and then
with ``--readers`` streams, which another process reads. Then it watches a job by events and by polling as ``lvp`` does,
and asks /health for its time while 50 streams are open. Prints tables; quote the medians and the load.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from health import build_image

from tests.servers.nginx import nginx

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """
state_directory = "{folder}/state"
server = {{ bind = ["127.0.0.1:0"], max_connections = 600, max_connections_per_address = 500, max_event_streams = 400, \
max_event_streams_per_address = 400 }}
auth = {{ client_token = "{folder}/token" }}
log = {{ format = "json" }}
cache = {{ require_checksum = false, max_size = "8GiB", min_free = "1GiB" }}
sources.http = {{ plugin = "http", urls = ["http://127.0.0.1:*"] }}
targets.files = {{ plugin = "file", directory = "{folder}/volumes", make_directory = true, overcommit = true }}
"""
PAGES = 50
HEALTH_REQUESTS = 1000
NAP = 0.002


class Service:
    """A running daemon."""

    def __init__(self, folder: Path) -> None:
        config, log = folder / "config.toml", folder / "log"
        config.write_text(CONFIG.format(folder=folder))
        command = [sys.executable, "-m", "provisioner.cli", "serve", "--config", config]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stderr=out)
        while not (ready := [line for line in log.read_text().splitlines() if '"event": "ready"' in line]):
            if self.process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        self.folder = folder
        self.port = int(json.loads(ready[0])["bind"][0].rpartition(":")[2])
        self.token = (folder / "token").read_text().strip()
        self.requests = self.received = 0

    def call(self, method: str, path: str, body: object = None) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"X-API-Token": self.token, "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        self.requests += 1
        self.received += len(text) + len(str(answer.headers))
        return json.loads(text)

    def submit(self, url: str) -> dict:
        number = uuid.uuid4().hex[:12]
        body = {"image_url": f"{url}?{number}", "volume_name": f"bench-{number}", "volume_size_gb": 8}
        return self.call("POST", "/api/v1/jobs", body)

    def watch_by_polling(self, job_id: str) -> None:
        """Ask for the job as often as ``lvp`` does, until it has ended."""
        pause = 0.1
        while self.call("GET", f"/api/v1/jobs/{job_id}")["status"] in {"pending", "running"}:
            time.sleep(pause)
            pause = min(pause * 1.3, 1.0)

    def watch_by_events(self, job_id: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", f"/api/v1/jobs/{job_id}/events", headers={"X-API-Token": self.token})
        answer = connection.getresponse()
        self.requests += 1
        self.received += len(str(answer.headers)) + len(answer.read())
        connection.close()

    def processor_time(self) -> float:
        """Return the seconds of processor time that the daemon has used."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def job_time(self) -> float:
        """Return the seconds that all jobs took so far, as the daemon counts them."""
        time.sleep(1.1)  # the metrics are rendered once a second
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return sum(float(value) for value in re.findall(r"job_duration_seconds_sum\{.*\} (.*)", text))

    def two_jobs(self, url: str) -> tuple[float, float]:
        """Run two jobs at once; return how long one took, and the daemon's processor time for both, in seconds."""
        took, used = self.job_time(), self.processor_time()
        for job_id in [self.submit(url)["job_id"] for _ in range(2)]:
            self.watch_by_events(job_id)
            if (job := self.call("GET", f"/api/v1/jobs/{job_id}"))["status"] != "completed":
                raise SystemExit(job.get("error"))
        used = self.processor_time() - used
        took = (self.job_time() - took) / 2
        for volume in (self.folder / "volumes").glob("bench-*"):
            volume.unlink()
        self.call("POST", "/api/v1/cache/prune")
        for image in self.call("GET", "/api/v1/cache/images")["images"]:
            self.call("DELETE", f"/api/v1/cache/images/{image['checksum']}")
        return took, used

    @contextmanager
    def readers(self, count: int) -> Iterator[None]:
        """Let another process read this many streams."""
        command = [sys.executable, __file__, "--read", str(self.port), self.token, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield
            finally:
                process.terminate()


def read_streams(port: int, token: str, count: int) -> None:
    """Read all events on ``count`` connections until terminated."""
    waiting = selectors.DefaultSelector()
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port))
        one.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nX-API-Token: {token}\r\n\r\n".encode())
        if b" 200 " not in one.recv(65536):
            raise SystemExit("a stream was refused")
        waiting.register(one, selectors.EVENT_READ)
    print("open", flush=True)
    while True:
        for key, _ in waiting.select():
            if not key.fileobj.recv(65536):  # type: ignore[union-attr]
                raise SystemExit("a stream ended")


def health(port: int) -> list[float]:
    """Return the milliseconds of requests of /health."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took = []
    for _ in range(HEALTH_REQUESTS):
        begun = time.monotonic()
        connection.request("GET", "/health")
        connection.getresponse().read()
        took.append((time.monotonic() - begun) * 1000)
        time.sleep(NAP)
    return took


def jobs_with_readers(service: Service, url: str, runs: int, readers: int) -> None:
    alone, watched = [], []
    service.two_jobs(url)  # warm
    for _ in range(runs):
        alone.append(service.two_jobs(url))
        with service.readers(readers):
            watched.append(service.two_jobs(url))
    print("| two jobs at once | median of one | fastest | processor time, median |\n|---|---|---|---|")
    for name, figures in (("no reader", alone), (f"{readers} readers", watched)):
        took, used = zip(*figures, strict=True)
        print(f"| {name} | {statistics.median(took):.2f} s | {min(took):.2f} s | {statistics.median(used):.2f} s |")
    for number, what in enumerate(("time", "processor time")):
        more = statistics.median(two[number] / one[number] - 1 for one, two in zip(alone, watched, strict=True))
        print(f"\n{more:+.1%} {what}, the median of {runs} pairs")
    print()


def events_and_polling(service: Service, url: str) -> None:
    print("| watching a job by | seconds | requests | bytes received |\n|---|---|---|---|")
    for name, watch in (("polling", service.watch_by_polling), ("events", service.watch_by_events)):
        job_id = service.submit(url)["job_id"]
        service.requests = service.received = 0
        began = time.monotonic()
        watch(job_id)
        print(f"| {name} | {time.monotonic() - began:.1f} | {service.requests} | {service.received} |")
    print()


def health_with_pages(service: Service, url: str) -> None:
    print("| /health, milliseconds, with two jobs | 50 % | 99 % |\n|---|---|---|")
    for pages in (0, PAGES):
        with service.readers(pages):
            for _ in range(2):
                service.submit(url)
            cuts = statistics.quantiles(health(service.port), n=100, method="inclusive")
            print(f"| {pages} streams | {cuts[49]:.1f} | {cuts[98]:.1f} |")


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        read_streams(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="of the image's disk, in MiB")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (folder / "www").mkdir()
        build_image(folder / "www", given.size)
        with nginx(folder / "www", folder / "nginx") as web:
            service = Service(folder)
            url = f"{web.url}/disk.qcow2"
            try:
                jobs_with_readers(service, url, given.runs, given.readers)
                events_and_polling(service, url)
                health_with_pages(service, url)
            finally:
                service.process.terminate()
                service.process.wait(120)
    print(f"\nload {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
