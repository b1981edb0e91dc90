"""How quickly /health answers: alone, and while two conversions run. Prints a table; exits with 0 whatever it says.

    python contrib/bench/health.py [--seconds 10] [--size 2048] [--converter native]

Starts a daemon of its own, asks one question after the other over one connection, and keeps two conversions of an image
of SIZE MiB running meanwhile (jobs are submitted again as they end). The target is 50 ms at the 99th percentile.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024**2
CONFIG = """
state_directory = "{folder}/state"
server = {{ bind = ["127.0.0.1:0"] }}
auth = {{ client_token = "{folder}/token" }}
log = {{ format = "json" }}
sources.http = {{ plugin = "http", urls = ["http://127.0.0.1:*"] }}
converters.qcow2 = "{converter}"
targets.files = {{ plugin = "file", directory = "{folder}/volumes", make_directory = true, overcommit = true }}
"""


def build_image(folder: Path, size: int) -> None:
    """A compressed qcow2 image, half of it noise, with its checksum beside it."""
    raw, image = folder / "disk.raw", folder / "disk.qcow2"
    with raw.open("wb") as file:
        for number in range(size):
            file.write(os.urandom(MIB // 2) + bytes([number % 251]) * (MIB // 2))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, image], check=True)
    raw.unlink()
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / "disk.qcow2.sha256").write_text(f"{digest}  disk.qcow2\n")


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing of each request."""

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def images(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/disk.qcow2"
    server.shutdown()


@contextmanager
def daemon(folder: Path, converter: str) -> Iterator[tuple[int, str]]:
    """The port and a token of a running daemon."""
    config, log = folder / "config.toml", folder / "log"
    config.write_text(CONFIG.format(folder=folder, converter=converter))
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "provisioner.cli", "serve", "--config", config], stderr=out)
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
    """Keeps two jobs running until told to stop; ``ended`` counts those that completed."""

    def __init__(self, port: int, token: str, url: str) -> None:
        super().__init__(daemon=True)
        self.port, self.token, self.url = port, token, url
        self.ended = 0
        self.converting = threading.Event()
        self.stop = threading.Event()

    def call(self, method: str, path: str, body: object = None) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"X-API-Token": self.token, "Content-Type": "application/json"}
        connection.request(method, f"/api/v1/{path}", None if body is None else json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def submit(self, number: int) -> str:
        body = {"image_url": self.url, "volume_name": f"bench-{number}", "volume_size_gb": 8}
        return self.call("POST", "jobs", body)["job_id"]

    def run(self) -> None:
        jobs = {number: self.submit(number) for number in range(2)}
        while not self.stop.wait(0.2):
            for number, job_id in jobs.items():
                job = self.call("GET", f"jobs/{job_id}")
                if job["status"] == "failed":
                    raise SystemExit(job["error"])
                if job.get("progress", {}).get("stage") == "converting":
                    self.converting.set()
                if job["status"] == "completed":
                    self.ended += 1
                    jobs[number] = self.submit(number)
        for job_id in jobs.values():
            self.call("POST", f"jobs/{job_id}/cancel")


def ask(port: int, seconds: float) -> list[float]:
    """Milliseconds of each answer, asked one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took, end = [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - begun) * 1000)
        if answer.status != 200:
            raise SystemExit(f"/health answered {answer.status}")
        time.sleep(0.002)  # a client that never pauses measures itself
    return took


def row(name: str, took: list[float]) -> None:
    cuts = statistics.quantiles(took, n=1000, method="inclusive")
    print(f"{name:<28}{len(took):>8}{cuts[499]:>9.1f}{cuts[989]:>9.1f}{cuts[998]:>9.1f}{max(took):>9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--size", type=int, default=2048, help="of the image's disk, in MiB")
    parser.add_argument("--converter", default="native", choices=["native", "qemu-img"])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        (folder / "www").mkdir()
        build_image(folder / "www", given.size)
        with images(folder / "www") as url, daemon(folder, given.converter) as (port, token):
            print(f"{'/health, milliseconds':<28}{'asked':>8}{'50 %':>9}{'99 %':>9}{'99.9 %':>9}{'worst':>9}")
            row("alone", ask(port, given.seconds))
            jobs = Jobs(port, token, url)
            jobs.start()
            row("two jobs, downloading first", ask(port, given.seconds / 2))
            jobs.converting.wait(120)
            row(f"two conversions, {given.converter}", ask(port, given.seconds))
            jobs.stop.set()
            jobs.join(120)
            print(
                f"{jobs.ended} jobs completed meanwhile; load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores"
            )


if __name__ == "__main__":
    main()
