"""Measures start, lists, submits and pruning with a long history in the job store. Prints a table in Markdown.

    python contrib/bench/history.py [--jobs 1000000] [--database FILE] [--tree OLD_CHECKOUT --tree .]

Starts the real daemon of each source tree, in the tree's own environment (``.venv``) if it has one, over a copy of the
same database, in the first schema, and sends requests over HTTP on loopback. With two trees the table has a column for
each: before and after. For lists it also shows the processor time of one list, which means more on a busy machine.
``--database`` keeps the database, which takes a minute to create. Needs some 3 GB of disk space.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

from series import machine

SCHEMA_0 = """
CREATE TABLE jobs (job_id TEXT PRIMARY KEY, seq INTEGER, status TEXT NOT NULL, volume_name TEXT, correlation_id TEXT,
    idempotency_key TEXT, updated_at REAL NOT NULL, body TEXT NOT NULL);
CREATE INDEX jobs_status ON jobs (status);
CREATE INDEX jobs_key ON jobs (idempotency_key);
CREATE INDEX jobs_seq ON jobs (seq);
"""
STATUSES = ("completed",) * 16 + ("failed",) * 3 + ("cancelled",)
# A tenth of all jobs share one volume name and one correlation id; each other name has some hundred jobs.
FILTERS = {
    "no filter": "",
    "status=completed": "status=completed",
    "status=failed": "status=failed",
    "status=pending": "status=pending",
    "a volume of few jobs": "volume_name=v17",
    "a volume of a tenth": "volume_name=hot",
    "a volume of a tenth, failed": "volume_name=hot&status=failed",
    "a correlation id of few": "correlation_id=c17",
    "a correlation id of a tenth": "correlation_id=hot",
    "both of a tenth": "volume_name=hot&correlation_id=hot",
    "both of a tenth, cancelled": "volume_name=hot&correlation_id=hot&status=cancelled",
    "the last page": "offset={last}",
}


def make(path: Path, jobs: int) -> None:
    """Create a database of the first schema with ``jobs`` ended jobs."""
    rng = random.Random(1)
    now = time.time()

    def rows():
        for seq in range(1, jobs + 1):
            volume = "hot" if seq % 10 == 0 else f"v{rng.randrange(jobs // 100 + 1)}"
            correlation = "hot" if seq % 10 == 0 else f"c{rng.randrange(jobs // 100 + 1)}"
            job_id, status = str(uuid.UUID(int=rng.getrandbits(128))), rng.choice(STATUSES)
            at = now - 80 * 86400 * (1 - seq / jobs)
            spec = {
                "image_url": "https://images.example.com/debian-12-generic-amd64.qcow2", "image_type": "qcow2",
                "volume_name": volume, "volume_size_gb": 20, "target": "files", "checksum": None,
                "correlation_id": correlation, "priority": 0,
            }  # fmt: skip
            body = {
                "job_id": job_id, "spec": spec, "status": status, "created_at": at - 30, "updated_at": at,
                "attempts": 1, "request_id": job_id, "principal": "token:client", "cache_hit": True,
                "image_path": "/var/lib/libvirt-volume-provisioner/cache/debian-12-generic-amd64.qcow2",
                "timings": {"checking_cache": 0.1, "allocating": 0.2, "converting": 9.1, "finalizing": 0.1},
            }  # fmt: skip
            yield job_id, seq, status, volume, correlation, None, at, json.dumps(body)

    with sqlite3.connect(path, isolation_level=None) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(SCHEMA_0)
        db.execute("BEGIN")
        db.executemany("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows())
        db.execute("COMMIT")
    db.close()


class Daemon:
    """One run of the daemon of a source tree. Its jobs wait for a server that does not answer."""

    def __init__(self, tree: Path, folder: Path, silent: int, keep: str = "90d") -> None:
        self.folder, self.tree = folder, tree
        (folder / "config.toml").write_text(f"""
state_directory = "{folder}/state"
[server]
bind = ["127.0.0.1:0"]
[auth]
client_token = "{folder}/token"
[jobs]
max_queued = 100000
keep_history = "{keep}"
[log]
format = "json"
[cache]
require_checksum = false
[sources.http]
plugin = "http"
urls = ["http://127.0.0.1:{silent}/"]
[targets.files]
plugin = "file"
directory = "{folder}/volumes"
make_directory = true
overcommit = true
""")
        self.image = f"http://127.0.0.1:{silent}/disk.qcow2"

    def __enter__(self) -> Daemon:
        log = self.folder / "log"
        environment = {**os.environ, "PYTHONPATH": f"{self.tree}:{self.tree}/plugins"}
        own = self.tree / ".venv/bin/python"  # an older tree has other dependencies and plugins
        command = [
            own if own.exists() else sys.executable,
            "-m",
            "provisioner.cli",
            "serve",
            "--config",
            self.folder / "config.toml",
        ]
        begun = time.monotonic()
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stderr=out, env=environment, cwd=self.tree)
        while not (
            ready := [line for line in log.read_text().splitlines() if '"event":"ready"' in line.replace(" ", "")]
        ):
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.01)
        self.seconds, self.processor = time.monotonic() - begun, self.used()
        self.port = int(json.loads(ready[0])["bind"][0].rpartition(":")[2])
        self.token = (self.folder / "token").read_text().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def used(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident(self) -> int:
        return self.resident_kib // 1024

    @property
    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def client(self) -> Client:
        return Client(self)


class Client:
    """One connection to the daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=120)
        self._headers = {"X-API-Token": daemon.token, "Content-Type": "application/json"}
        self._image = daemon.image

    def ask(self, method: str, path: str, body: object = None, allowed: tuple[int, ...] = (200, 202)) -> float:
        """Send a request; return the seconds until the whole response has arrived."""
        begun = time.perf_counter()
        self._http.request(method, path, None if body is None else json.dumps(body), self._headers)
        response = self._http.getresponse()
        text = response.read()
        assert response.status in allowed, text
        self.answer = json.loads(text)
        return time.perf_counter() - begun

    def list(self, query: str, allowed: tuple[int, ...] = (200,)) -> float:
        return self.ask("GET", f"/api/v1/jobs?{query}", allowed=allowed)

    def submit(self) -> float:
        body = {"image_url": self._image, "volume_name": f"n{uuid.uuid4().hex}", "volume_size_gb": 1}
        return self.ask("POST", "/api/v1/jobs", body)


def percentiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2] * 1e3:.1f}, {ordered[int(len(ordered) * 0.99)] * 1e3:.1f} ms"


@contextmanager
def listing(daemon: Daemon, clients: int):
    """Let ``clients`` clients list the completed jobs without a pause; yield the seconds of each list."""
    stop, took = threading.Event(), []

    def work() -> None:
        client = daemon.client()
        while not stop.is_set():
            took.append(client.list("status=completed", (200, 503)))

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in (folder / 'state').glob('jobs.sqlite*')) / 2**20:.0f} MiB"


def measure(tree: Path, original: Path, folder: Path, given: argparse.Namespace, silent: int) -> dict[str, str]:
    """Return all figures of one tree."""
    (folder / "state").mkdir(parents=True, mode=0o700)
    shutil.copy(original, folder / "state" / "jobs.sqlite")
    figures = {}
    with Daemon(tree, folder, silent) as daemon:
        figures["first start: processor, until ready"] = f"{daemon.processor:.2f} s, {daemon.seconds:.1f} s"
    with Daemon(tree, folder, silent) as daemon:
        figures["further starts: processor, until ready"] = f"{daemon.processor:.2f} s, {daemon.seconds:.1f} s"
        figures["database"] = size(folder)
        client = daemon.client()
        client.list("limit=1")
        last = client.answer["count"] - 100
        for name, query in FILTERS.items():
            used = daemon.used()
            took = [client.list(query.format(last=last)) for _ in range(given.requests)]
            used = (daemon.used() - used) / given.requests * 1e3
            figures[f"list: {name}"] = f"{percentiles(took)}; {used:.1f} ms"
        figures["resident after the lists"] = f"{daemon.resident} MiB"
        figures["submit: alone"] = percentiles([client.submit() for _ in range(given.requests)])
        with listing(daemon, given.clients) as lists:
            time.sleep(1)
            figures[f"submit: while {given.clients} clients list"] = percentiles(
                [client.submit() for _ in range(given.requests // 4)]
            )
        figures["list: of these clients"] = f"{percentiles(lists)}; {len(lists)} lists"
    # Now all ended jobs are too old. Send requests while the service prunes them.
    with Daemon(tree, folder, silent, keep="0s") as daemon:
        figures["start with all jobs too old"] = f"{daemon.processor:.2f} s, {daemon.seconds:.1f} s"
        client = daemon.client()
        client.list("status=completed")
        before, begun = client.answer["count"], time.monotonic()
        lists, submits = [], []
        while time.monotonic() < begun + 10:
            lists.append(client.list("status=completed"))
            submits.append(client.submit())
            time.sleep(0.02)
        client.list("status=completed")
        rate = (before - client.answer["count"]) / (time.monotonic() - begun)
        figures["while pruning: list, submit; rate"] = (
            f"{percentiles(lists)}; {percentiles(submits)}; {rate:.0f} jobs a second"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--tree", type=Path, action="append", help="a source tree; repeatable (default: this one)")
    parser.add_argument("--requests", type=int, default=200, help="requests of each kind")
    parser.add_argument("--clients", type=int, default=12, help="clients that list while jobs are submitted")
    parser.add_argument("--database", type=Path, help="a database of the first schema to copy; created if missing")
    parser.add_argument("--folder", type=Path, help="folder for the databases (default: a temporary one)")
    given = parser.parse_args()
    trees = [tree.resolve() for tree in given.tree or [Path(__file__).parents[2]]]
    with socket.create_server(("127.0.0.1", 0)) as silent, tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        original = given.database or folder / "original.sqlite"
        if not original.exists():
            make(original, given.jobs)
        columns = []
        for number, tree in enumerate(trees):
            columns.append(measure(tree, original, folder / str(number), given, silent.getsockname()[1]))
            shutil.rmtree(folder / str(number))
    print(f"{given.jobs} ended jobs; {machine()}; medians and 99th percentiles; processor time\n")
    print("| | " + " | ".join(tree.name for tree in trees) + " |")
    print("| --- |" + " --- |" * len(trees))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


if __name__ == "__main__":
    main()
