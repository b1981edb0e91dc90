"""Measures how quickly /health answers and how late the event loop is: alone, and while two jobs run. Prints a table.

    python contrib/bench/health.py [--seconds 10] [--size 1024] [--converter native]

Starts a daemon (``watched.py``) and an nginx, sends one request after the other over one connection, and keeps two
jobs running meanwhile: first cold provisions, each a whole download and conversion, then conversions of a cached image.
"machine late" is the delay of a timer in this process: what the scheduler of a loaded machine adds to every figure.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.nginx import nginx

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024**2
HERE = Path(__file__).parent
NAP = 0.002
SERIES = ("late", "steps")
CONFIG = """
state_directory = "{folder}/state"
server = {{ bind = ["127.0.0.1:0"] }}
auth = {{ client_token = "{folder}/token" }}
log = {{ format = "json" }}
cache = {{ require_checksum = false, max_size = "8GiB", min_free = "1GiB" }}
sources.http = {{ plugin = "http", urls = ["http://127.0.0.1:*"] }}
converters.qcow2 = "{converter}"
targets.files = {{ plugin = "file", directory = "{folder}/volumes", make_directory = true, overcommit = true }}
"""


def build_image(folder: Path, size: int) -> None:
    """Create a compressed qcow2 image, half of it random data."""
    raw, image = folder / "disk.raw", folder / "disk.qcow2"
    with raw.open("wb") as file:
        for number in range(size):
            file.write(os.urandom(MIB // 2) + bytes([number % 251]) * (MIB // 2))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, image], check=True)
    raw.unlink()


@contextmanager
def daemon(folder: Path, converter: str) -> Iterator[tuple[int, str]]:
    """Run a daemon; yield its port and a token."""
    config, log = folder / "config.toml", folder / "log"
    config.write_text(CONFIG.format(folder=folder, converter=converter))
    with log.open("wb") as out:
        command = [sys.executable, HERE / "watched.py", folder / "watch", "serve", "--config", config]
        process = subprocess.Popen(command, stderr=out)
    try:
        while not (ready := [line for line in log.read_text().splitlines() if '"event": "ready"' in line]):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        yield int(json.loads(ready[0])["bind"][0].rpartition(":")[2]), (folder / "token").read_text().strip()
    finally:
        process.terminate()
        process.wait(120)


class Jobs(threading.Thread):
    """Keeps two jobs running until ``stop`` is set. ``ended`` counts jobs; with ``cold``, each has a url of its own."""

    def __init__(self, folder: Path, port: int, token: str, url: str, *, cold: bool) -> None:
        super().__init__(daemon=True)
        self.folder, self.port, self.token, self.url, self.cold = folder, port, token, url, cold
        self.ended = 0
        self.stop = threading.Event()

    def call(self, method: str, path: str, body: object = None) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"X-API-Token": self.token, "Content-Type": "application/json"}
        connection.request(method, f"/api/v1/{path}", None if body is None else json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def submit(self) -> str:
        number = uuid.uuid4().hex[:12]
        url = f"{self.url}?number={number}" if self.cold else self.url
        body = {"image_url": url, "volume_name": f"bench-{number}", "volume_size_gb": 8}
        return self.call("POST", "jobs", body)["job_id"]

    def wait(self, job_id: str) -> bool:
        """Return whether the job has ended, and remove its volume. Raises SystemExit if it failed."""
        job = self.call("GET", f"jobs/{job_id}")
        if job["status"] == "failed":
            raise SystemExit(job["error"])
        if job["status"] in {"completed", "cancelled"}:
            for volume in (self.folder / "volumes").glob(f"{job['volume_name']}*"):
                volume.unlink()
            return True
        return False

    def run(self) -> None:
        jobs = [self.submit(), self.submit()]
        while not self.stop.wait(0.2):
            for number, job_id in enumerate(jobs):
                if self.wait(job_id):
                    self.ended += 1
                    jobs[number] = self.submit()
        for job_id in jobs:
            self.call("POST", f"jobs/{job_id}/cancel")
        while not all(self.wait(job_id) for job_id in jobs):
            time.sleep(0.1)


@dataclass
class Phase:
    """One phase of the run: ``answers`` and ``machine`` are the milliseconds of each response and each timer delay."""

    name: str
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    answers: list[float] = field(default_factory=list)
    machine: list[float] = field(default_factory=list)

    def ask(self, port: int, seconds: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while (begun := time.monotonic()) < self.began + seconds:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
            done = time.monotonic()
            self.answers.append((done - begun) * 1000)
            if answer.status != 200:
                raise SystemExit(f"/health answered {answer.status}")
            time.sleep(NAP)  # a client without pauses would measure itself
            self.machine.append((time.monotonic() - done - NAP) * 1000)
        self.ended = time.monotonic()

    def rows(self, watch: dict) -> Iterator[str]:
        during = {
            name: [value * 1000 for at, value in watch[name] if self.began <= at <= self.ended] for name in SERIES
        }
        series = {
            "/health": self.answers,
            "loop late": during["late"],
            "machine late": self.machine,
            "step, CPU": during["steps"],
        }
        for what, values in series.items():
            if len(values) < 2:
                raise SystemExit(f"{self.name}: only {len(values)} values of {what} in {self.ended - self.began:.1f} s")
            cuts = statistics.quantiles(values, n=1000, method="inclusive")
            yield (
                f"| {self.name} | {what} | {len(values)} | {cuts[499]:.1f} | {cuts[989]:.1f} | {cuts[998]:.1f} "
                f"| {max(values):.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--size", type=int, default=1024, help="of the image's disk, in MiB")
    parser.add_argument("--converter", default="native", choices=["native", "qemu-img"])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    print("| while | milliseconds of | count | 50 % | 99 % | 99.9 % | worst |\n|---|---|---|---|---|---|---|")
    phases, ended = [], []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (folder / "www").mkdir()
        build_image(folder / "www", given.size)
        with nginx(folder / "www", folder / "nginx") as web:
            with daemon(folder, given.converter) as (port, token):
                for what, cold in (("alone", None), ("two cold provisions", True), ("two conversions", False)):
                    jobs = None if cold is None else Jobs(folder, port, token, f"{web.url}/disk.qcow2", cold=cold)
                    if jobs is not None:
                        jobs.start()
                    phases.append(Phase(what))
                    phases[-1].ask(port, given.seconds)
                    if jobs is not None:
                        jobs.stop.set()
                        jobs.join(120)
                        ended.append(f"{jobs.ended} jobs ended with {what}")
            watch = json.loads((folder / "watch").read_text())
    for phase in phases:
        print(*phase.rows(watch), sep="\n")
    print(f"longest step: {watch['longest'][0] * 1000:.1f} ms of processor time, in {watch['longest'][1]}")
    print(f"{', '.join(ended)}; load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
