"""Measures lvp on many hosts at once: time, processor time, memory, threads and descriptors of each command.

    python contrib/bench/fleet.py [--hosts 200] [--daemons 8] [--silent 4] [--seconds 20]

``--daemons`` of the hosts are real daemons; the rest are simulated by one process (``recorded_hosts.py``) over TLS, of
which ``--silent`` accept connections and never answer. lvp runs with the usual limit of 1024 descriptors. Prints a
table, and checks that each command reports exactly the silent hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.end_to_end.daemon import LVP, Daemon, plain_config, until
from tests.servers.images import image_server

if TYPE_CHECKING:
    from collections.abc import Iterator

DESCRIPTORS = 1024
# Seconds that lvp waits for a host.
PATIENCE = 10


@dataclass
class Measured:
    """A command that has ended: seconds of the clock and of processors, and the highest values of the rest."""

    status: int
    out: str
    err: str
    seconds: float
    processor: float
    resident: int
    threads: int
    descriptors: int


def measure(folder: Path, *args: str, until_seconds: float | None = None) -> Measured:
    """Run lvp, until its end or for so many seconds."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "TERM": "dumb"}
    out, err = folder / "out", folder / "err"
    start = time.monotonic()
    with out.open("wb") as to_out, err.open("wb") as to_err:
        limited = ["prlimit", f"--nofile={DESCRIPTORS}", *LVP]
        process = subprocess.Popen([*limited, *args], stdout=to_out, stderr=to_err, env=environment)
        highest = {"threads": 0, "descriptors": 0}
        watcher = threading.Thread(target=_watch, args=(process.pid, highest))
        watcher.start()
        if until_seconds is not None:
            time.sleep(until_seconds)
            process.send_signal(signal.SIGINT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    watcher.join()
    return Measured(
        process.returncode, out.read_text(), err.read_text(), seconds, usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024, highest["threads"], highest["descriptors"],
    )  # fmt: skip


def _watch(pid: int, highest: dict[str, int]) -> None:
    """Keep the highest number of threads and descriptors until the process ends."""
    while True:
        try:
            highest["descriptors"] = max(highest["descriptors"], len(list(Path(f"/proc/{pid}/fd").iterdir())))
            highest["threads"] = max(highest["threads"], len(list(Path(f"/proc/{pid}/task").iterdir())))
        except OSError:
            return
        if not highest["threads"]:
            return
        time.sleep(0.02)


@contextmanager
def simulated(folder: Path, count: int, silent: int) -> Iterator[list[str]]:
    """Run the simulated hosts; yield their addresses."""
    script = Path(__file__).with_name("recorded_hosts.py")
    command = [sys.executable, script, folder, str(count), str(silent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield json.loads((folder / "hosts.json").read_text())
        finally:
            process.kill()


@contextmanager
def daemons(folder: Path, count: int) -> Iterator[list[Daemon]]:
    """Start real daemons, two at a time."""
    made = [Daemon(folder / f"d{number}", plain_config(folder / f"d{number}")) for number in range(count)]
    try:
        for daemon in made:
            daemon.launch()
            until(lambda daemon=daemon: daemon.event("ready"))
            daemon.url = daemon.event("ready")["bind"][0]
        yield made
    finally:
        for daemon in made:
            if daemon.process is not None:
                daemon.kill()


def settings(folder: Path, real: list[Daemon], others: list[str]) -> list[str]:
    """Write the settings file; return the names of the hosts."""
    hosts = {f"real-{number:03}": {"url": one.url, "token": one.token} for number, one in enumerate(real)}
    hosts |= {f"kvm-{number:03}": {"url": url, "ca": str(folder / "ca.pem")} for number, url in enumerate(others)}
    (folder / "lvp.toml").write_text(tomli_w.dumps({"token": "x", "hosts": hosts}))
    return list(hosts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=200)
    parser.add_argument("--daemons", type=int, default=8)
    parser.add_argument("--silent", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long lvp top is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        (images / "a.raw").write_bytes(os.urandom(2**20))
        digest = subprocess.run(["sha256sum", "a.raw"], cwd=images, capture_output=True, check=True).stdout
        (images / "a.raw.sha256").write_bytes(digest)
        with (
            image_server(images) as server,
            daemons(folder, options.daemons) as real,
            simulated(folder, options.hosts - options.daemons, options.silent) as others,
        ):
            names = settings(folder, real, others)
            measure_all(folder, server.of("a.raw"), names, options.silent, options.seconds)


def measure_all(folder: Path, image: str, names: list[str], silent: int, seconds: float) -> None:
    """Measure each command and print a line of the table."""
    batch = folder / "batch.jsonl"
    entry = {"hosts": "*", "volume_name": "v-{host}", "image_url": image, "image_type": "raw"}
    batch.write_text(json.dumps(entry))
    every = ["--hosts", "*", "--host-timeout", str(PATIENCE)]
    submit = ["job", "submit", image, "web", "1", "--type", "raw"]
    commands = {
        "`health`": ["health", *every],
        "`job submit --wait`": [*submit, "--wait", *every],
        "`job submit --batch --dry-run`": ["job", "submit", "--batch", str(batch), "--dry-run", *every[2:]],
        "`job submit --batch`": ["job", "submit", "--batch", str(batch), *every[2:]],
        "`job submit --batch`, again": ["job", "submit", "--batch", str(batch), *every[2:]],
        "`job list`": ["job", "list", *every],
        "`top --once`": ["top", "--once", *every],
    }
    print(f"{len(names)} hosts, {silent} of them silent; load {os.getloadavg()[0]:.1f}\n")
    print("| command | s | processor s | MiB | threads | descriptors |\n| --- | --- | --- | --- | --- | --- |")
    for label, command in commands.items():
        done = measure(folder, *command)
        show(label, done)
        blamed = {line.split()[0].rstrip(":") for line in done.err.splitlines() if line.startswith(("kvm", "real"))}
        assert blamed == set(names[len(names) - silent :]), done.err
        assert done.status == (100 + min(silent, 20) if silent else 0), (done.status, done.err)
    live = measure(folder, "top", *every, until_seconds=seconds)
    show(f"`top`, {seconds:g} s", live)
    assert live.status == 130, live.err


def show(label: str, done: Measured) -> None:
    """Print a line of the table."""
    figures = f"{done.seconds:.1f} | {done.processor:.1f} | {done.resident / 2**20:.0f}"
    print(f"| {label} | {figures} | {done.threads} | {done.descriptors} |", flush=True)


if __name__ == "__main__":
    main()
