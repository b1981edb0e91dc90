"""Runs the real daemon as a child of the test, and finds what it leaves on disk and which processes it has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx
import tomli_w

# Seconds; generous for a busy machine, because the limit only ends tests that hang.
TIMEOUT = 90.0
LVP = [sys.executable, "-m", "provisioner.cli"]
# Creating a client takes 25 ms of processor time, for certificates that no request here uses; a request takes 2 ms.
# Each request has its own connection, as from a new client.
CLIENT = httpx.Client(trust_env=False, timeout=TIMEOUT, limits=httpx.Limits(max_keepalive_connections=0))


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def until(what, seconds=TIMEOUT, pause=0.01):
    """Wait until ``what()`` returns a true value; return it."""
    stop = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < stop, "timed out"
        time.sleep(pause)
    return found


def plain_config(folder: Path, **tables) -> dict:
    """Return a configuration with file volumes and images from this machine; ``tables`` override its tables by key."""
    config = {
        "state_directory": str(folder / "state"),
        "server": {"bind": ["127.0.0.1:0"]},
        "auth": {"client_token": str(folder / "client-token")},
        "cache": {"min_free": "1MiB"},
        "log": {"format": "json"},
        "sources": {"http": {"plugin": "http", "urls": ["http://127.0.0.1:*", "http://no-such-host.invalid/"]}},
        "targets": {
            "files": {
                "plugin": "file", "directory": str(folder / "volumes"), "make_directory": True, "overcommit": True
            }
        },
    }  # fmt: skip
    for name, table in tables.items():
        config[name] = {**config.get(name, {}), **table}
    return config


# The daemons that may run, by folder.
DAEMONS: dict[Path, Daemon] = {}


@dataclass
class Daemon:
    """A daemon that can be restarted: ``folder`` outlives the process."""

    folder: Path
    config: dict
    url: str = ""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    environment: dict[str, str] = field(default_factory=lambda: {**os.environ, "HOME": "/nonexistent"})
    ended_by_test: bool = False

    @property
    def log_file(self) -> Path:
        return self.folder / f"log-{self.starts}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def launch(self) -> None:
        """Start the process without waiting for it."""
        self.folder.mkdir(exist_ok=True)
        file = self.folder / "config.toml"
        file.write_text(tomli_w.dumps(self.config))
        self.starts += 1
        self.ended_by_test = False
        DAEMONS[self.folder] = self
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen([*LVP, "serve", "--config", str(file)], stderr=log, env=self.environment)

    def start(self) -> Daemon:
        """Start and wait until it is ready."""
        self.launch()
        until(lambda: self.event("ready") or self.process.poll() is not None)
        assert self.process.poll() is None, self.log_file.read_text()
        self.url = self.event("ready")["bind"][0]
        return self

    def state(self) -> str:
        """Return what explains a failure: how the process ended, or what its threads wait for, and the log's end."""
        status = self.process.poll()
        lines = [f"{self.folder.name}: pid {self.pid}, " + ("running" if status is None else f"ended with {status}")]
        if status is None:
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                with suppress(OSError):
                    run_state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                    waits = (task / "wchan").read_text(), (task / "syscall").read_text().split()[0]
                    lines.append(f"thread {task.name} {(task / 'comm').read_text().strip()}: {run_state} {waits}")
        return "\n".join(lines) + "\n" + self.log_file.read_text()[-4000:]

    def events(self, name: str) -> list[dict]:
        lines = self.log_file.read_text().splitlines()
        return [found for line in lines if line.startswith("{") and (found := json.loads(line))["event"] == name]

    def event(self, name: str) -> dict | None:
        return next(iter(self.events(name)), None)

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return the exit status and the log."""
        self.ended_by_test = True
        return self.process.wait(TIMEOUT), self.log_file.read_text()

    def stop(self) -> int:
        self.ended_by_test = True
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        self.ended_by_test = True
        self.process.kill()
        self.process.wait(TIMEOUT)

    @property
    def token(self) -> str:
        return (self.folder / "client-token").read_text().strip()

    def lvp(self, *args: object) -> Ended:
        """Run the real ``lvp`` against this daemon."""
        environment = {**self.environment, "LVP_URL": self.url, "LVP_TOKEN": self.token}
        done = subprocess.run([*LVP, *map(str, args)], capture_output=True, text=True, env=environment)  # noqa: PLW1510
        return Ended(done.returncode, done.stdout, done.stderr)

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        return CLIENT.request(method, self.url + path, json=body, headers={"X-API-Token": self.token})

    def submit(self, url: str, name: str, kind: str = "qcow2", **more: object) -> str:
        """Submit a job; return its id."""
        body = {"image_url": url, "volume_name": name, "volume_size_gb": 1, "image_type": kind, **more}
        answer = self.call("POST", "/api/v1/jobs", body)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    def job(self, job_id: str) -> dict:
        return self.call("GET", f"/api/v1/jobs/{job_id}").json()

    def job_ended(self, job_id: str) -> dict:
        return until(lambda: (job := self.job(job_id))["status"] not in {"pending", "running"} and job, pause=0.03)

    # --- files and processes ---

    @property
    def volumes(self) -> Path:
        return self.folder / "volumes"

    def volume(self, name: str) -> Path:
        return self.volumes / f"{name}.raw"

    def files(self) -> set[str]:
        """Return all volumes, staged ones included, and all complete and partial images in the cache.

        The lock is left out, since it is never removed.
        """
        found = [path for path in self.volumes.rglob("*") if path.is_file() and path.name != "lock"]
        cache = self.folder / "state" / "cache"
        found += [path for path in cache.rglob("*") if path.is_file() and "index" not in path.name]
        return {str(path.relative_to(self.folder)) for path in found}

    def children(self) -> list[int]:
        """Return the processes whose parent is the daemon."""
        return [pid for pid, parent in _parents().items() if parent == self.pid]


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # the process has ended
                continue
            if words[0] != "Z":
                found[int(entry.name)] = int(words[1])
    return found


def descendants(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    parents = _parents()
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def holders_of(folder: Path) -> list[int]:
    """Return the processes that have a file below ``folder`` open, other than a running daemon's lock."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                targets = [str(fd.readlink()) for fd in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(target.startswith(f"{folder}/") and not target.endswith("/.lvp/lock") for target in targets):
                found.append(int(entry.name))
    return found


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
