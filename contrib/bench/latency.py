"""Measures what a job costs beside its bytes: requests, connections, round trips and own time, with far servers.

    python contrib/bench/latency.py [--tree OLD_CHECKOUT --tree .] [--rtt 0 --rtt 20 --rtt 80] [--tls]

Starts the daemon of each source tree and an nginx behind a proxy that adds a round-trip time, and runs jobs of a small
image one after the other, alternating between the trees. "first" closes the connections before each job, "further"
leaves them open. The clone is on XFS on a loop device, which needs root. Prints a table in Markdown; the seconds are
from a job's start to its end, as the daemon logs them.
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
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from delay_proxy import DelayProxy
from figures import record
from reflink import mounted
from series import machine

from tests.servers.nginx import Nginx, nginx

MIB = 1024**2
SIZE = 2 * MIB
COMMAND = "python contrib/bench/latency.py --tree OLD_CHECKOUT --tree . --keep"
CONFIG = """
state_directory = "{folder}/state"
server = {{ bind = ["127.0.0.1:0"] }}
auth = {{ client_token = "{folder}/token" }}
log = {{ format = "json" }}
cache = {{ require_checksum = false, min_free = "1MiB" }}
sources.http = {{ plugin = "http", urls = ["{scheme}://127.0.0.1:*"]{trust} }}
targets.files = {{ plugin = "file", directory = "{folder}/volumes", make_directory = true, overcommit = true }}
targets.clones = {{ plugin = "file", directory = "{clones}" }}
"""


@dataclass(frozen=True)
class Case:
    """A kind of job. ``folder`` holds its image; ``checked``: the request has the checksum."""

    name: str
    folder: str
    target: str = "files"
    checked: bool = False
    new: bool = False


CASES = (
    Case("cached, checksum in the request", "none", checked=True),
    Case("cached, NAME.sha256", "sidecar"),
    Case("cached, SHA256SUMS", "sums"),
    Case("cached, no checksum", "none"),
    Case("clone, checksum in the request", "sums", "clones", checked=True),
    Case("clone, SHA256SUMS", "sums", "clones"),
    Case("new image, SHA256SUMS", "sums", new=True),
)


@dataclass
class Sample:
    """What the jobs of one case and round-trip time took, in seconds, and what the server saw of one job."""

    seconds: list[float] = field(default_factory=list)
    requests: int = 0
    connections: int = 0


class Daemon:
    """The daemon of a source tree, with its own proxy to the server."""

    def __init__(self, tree: Path, folder: Path, clones: Path, server: Nginx, proxy: DelayProxy, *, tls: bool) -> None:
        self.tree, self.folder, self.server, self.proxy = tree, folder, server, proxy
        self.scheme = "https" if tls else "http"
        folder.mkdir()
        clones.mkdir()
        trust = f', ca_file = "{server.ca_file}"' if tls else ""
        text = CONFIG.format(folder=folder, clones=clones, scheme=self.scheme, trust=trust)
        (folder / "config.toml").write_text(text)

    def __enter__(self) -> Daemon:
        self._log = self.folder / "log"
        environment = {**os.environ, "PYTHONPATH": f"{self.tree}:{self.tree}/plugins"}
        command = [sys.executable, "-m", "provisioner.cli", "serve", "--config", self.folder / "config.toml"]
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(command, stderr=out, env=environment, cwd=self.tree)
        while not (ready := self._events("ready")):
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.02)
        port = int(ready[0]["bind"][0].rpartition(":")[2])
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {
            "X-API-Token": (self.folder / "token").read_text().strip(),
            "Content-Type": "application/json",
        }
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def _events(self, event: str) -> list[dict]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def call(self, method: str, path: str, body: object = None) -> dict:
        self._http.request(method, f"/api/v1/{path}", None if body is None else json.dumps(body), self._headers)
        return json.loads(self._http.getresponse().read() or b"{}")

    def run(self, case: Case, digest: str, *, first: bool) -> tuple[float, int, int]:
        """Run one job; return its seconds and the requests and connections that it made."""
        path = new_image(self.server.root) if case.new else f"{case.folder}/disk.qcow2"
        if first:
            self.proxy.close_connections()
        requests, connections = self._requests(), self.proxy.connections
        name = f"bench-{uuid.uuid4().hex[:12]}"
        body = {
            "image_url": f"{self.scheme}://127.0.0.1:{self.proxy.port}/{path}",
            "image_type": path.rpartition(".")[2],
            "volume_name": name,
            "volume_size_gb": 1,
            "target": case.target,
            **({"checksum": digest} if case.checked else {}),
        }
        job_id = self.call("POST", "jobs", body)["job_id"]
        while not (ends := [one for one in self._events("job ended") if one["job_id"] == job_id]):
            time.sleep(0.02)
        if ends[0]["status"] != "completed":
            raise SystemExit(ends[0]["error"])
        self.call("DELETE", f"volumes/{name}?target={case.target}")
        return ends[0]["seconds"], self._requests() - requests, self.proxy.connections - connections

    def _requests(self) -> int:
        return len(self.server.access_log.read_text().splitlines())


def new_image(root: Path) -> str:
    """Create an image that no cache has, with a SHA256SUMS; return its path below ``root``."""
    folder = root / f"new-{uuid.uuid4().hex}"
    folder.mkdir()
    content = os.urandom(SIZE)
    (folder / "disk.raw").write_bytes(content)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  disk.raw\n")
    return f"{folder.name}/disk.raw"


def make_images(root: Path) -> str:
    """Create the folders of the cases; return the image's digest."""
    disk = root / "disk.raw"
    disk.write_bytes(os.urandom(SIZE))
    image = root / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image], check=True)
    content = image.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    for folder, name in (("none", None), ("sidecar", "disk.qcow2.sha256"), ("sums", "SHA256SUMS")):
        (root / folder).mkdir()
        (root / folder / "disk.qcow2").write_bytes(content)
        if name is not None:
            (root / folder / name).write_text(f"{digest}  disk.qcow2\n")
    # Files that were just written could change again without a change of nginx's version tag.
    long_ago = time.time() - 3600
    for path in root.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    return f"sha256:{digest}"


def measure(daemons: list[Daemon], digest: str, given: argparse.Namespace) -> dict[tuple, Sample]:
    """Return the samples by tree, case, whether it is the first job on its connections, and round-trip time."""
    samples: dict[tuple, Sample] = {}
    for case in given.cases:
        for rtt in given.rtt:
            for daemon in daemons:
                daemon.proxy.rtt = rtt / 1000
                for _ in range(2):  # fill the cache, make the base
                    daemon.run(case, digest, first=True)
            for first in (True, False):
                for _ in range(given.runs):
                    for daemon in daemons:
                        sample = samples.setdefault((daemon.tree, case.name, first, rtt), Sample())
                        seconds, sample.requests, sample.connections = daemon.run(case, digest, first=first)
                        sample.seconds.append(seconds)
    return samples


def show(samples: dict[tuple, Sample], trees: list[Path], given: argparse.Namespace) -> None:
    columns = " | ".join(f"{rtt:g} ms" for rtt in given.rtt)
    print(f"| tree | job | connections | requests, new connections | round trips | {columns} |")
    print("| --- |" + " --- |" * (4 + len(given.rtt)))
    low, high = min(given.rtt), max(given.rtt)
    for case in given.cases:
        for first in (True, False):
            for tree in trees:
                of = {rtt: samples[tree, case.name, first, rtt] for rtt in given.rtt}
                medians = {rtt: statistics.median(sample.seconds) for rtt, sample in of.items()}
                rounds = (medians[high] - medians[low]) * 1000 / (high - low) if high > low else 0.0
                cells = " | ".join(f"{medians[rtt] * 1000:.0f} ms" for rtt in given.rtt)
                which = "first" if first else "further"
                seen = of[high]
                print(
                    f"| {tree.name} | {case.name} | {which} | {seen.requests}, {seen.connections} | {rounds:.1f} "
                    f"| {cells} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, action="append", help="a source tree; repeatable (default: this one)")
    parser.add_argument("--rtt", type=float, action="append", help="milliseconds; repeatable (default: 0, 20, 80)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", action="append", help="the beginning of a case's name; repeatable (default: all)")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--keep", action="store_true", help="keep the figures of two trees and draw the chart")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    given.rtt = given.rtt or [0, 20, 80]
    given.cases = [case for case in CASES if not given.case or case.name.startswith(tuple(given.case))]
    trees = [tree.resolve() for tree in given.tree or [Path(__file__).parents[2]]]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=given.folder)))
        folder.chmod(0o755)
        (folder / "www").mkdir()
        digest = make_images(folder / "www")
        server = stack.enter_context(nginx(folder / "www", folder / "nginx"))
        disk = stack.enter_context(mounted("xfs", folder, 16 * 1024 * MIB))
        port = int((server.tls_url if given.tls else server.url).rpartition(":")[2])
        daemons = []
        for number, tree in enumerate(trees):
            proxy = stack.enter_context(DelayProxy(port))
            daemon = Daemon(tree, folder / str(number), disk / str(number), server, proxy, tls=given.tls)
            daemons.append(stack.enter_context(daemon))
        samples = measure(daemons, digest, given)
        show(samples, trees, given)
        if given.keep:
            record_all(samples, trees, given)
    print(f"\n{machine()}; medians of {given.runs} runs{'; TLS' if given.tls else ''}")


def record_all(samples: dict[tuple, Sample], trees: list[Path], given: argparse.Namespace) -> None:
    """Keep the further jobs at the longest round-trip time for the chart, with the trees as "before" and "now"."""
    rtt = max(given.rtt)
    values = {
        case.name: [statistics.median(samples[tree, case.name, False, rtt].seconds) * 1000 for tree in trees]
        for case in given.cases
    }
    record("latency", f"A small job whose server is {rtt:g} ms away", "ms", ["before", "now"], values, COMMAND)


if __name__ == "__main__":
    main()
