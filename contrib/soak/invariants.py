"""The checks between rounds, when all jobs have ended. Each raises BrokenPromiseError."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx

from contrib.soak.clients import BrokenPromiseError
from tests.end_to_end.daemon import holders_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contrib.soak.clients import Client
    from contrib.soak.lab import Harness, Image

MIB = 2**20
QUIET_LIMIT = 240.0  # seconds until all jobs have ended and the daemon is ready, even on a busy machine


class Figures(NamedTuple):
    """The daemon's resources at rest."""

    rss_mib: float
    descriptors: int
    threads: int


def wait_until_quiet(lab: Harness, clients: Sequence[Client]) -> None:
    """Wait until every job has ended and `/readyz` answers 200. Raises BrokenPromiseError after the limit."""
    stop = time.monotonic() + QUIET_LIMIT
    while True:
        settled = [client.settle(name) for client in clients for name in list(client.waiting)]
        reason = "jobs have not ended" if not all(settled) else _not_ready(lab)
        if reason is None:
            return
        if time.monotonic() > stop:
            raise BrokenPromiseError(f"not at rest within {QUIET_LIMIT:g} s: {reason}")
        time.sleep(0.1)


def _not_ready(lab: Harness) -> str | None:
    try:
        ready = lab.call("GET", "/readyz")
        active = [lab.call("GET", f"/api/v1/jobs?status={status}").json()["count"] for status in ("pending", "running")]
    except (httpx.TransportError, KeyError) as error:
        return repr(error)
    if any(active):
        return f"{active} jobs are pending and running"
    return None if ready.status_code == 200 else ready.text


def check(lab: Harness, clients: Sequence[Client]) -> None:
    """Check everything that must hold when no job is active."""
    for client in clients:
        for job_id in client.reported:
            client.status(job_id)
        for name, image in client.holds.items():
            check_volume(lab.volumes / f"{name}.raw", image)
    check_nothing_left(lab, clients)
    check_log(lab)


def check_volume(file: Path, image: Image | None) -> None:
    """Check that the volume contains the image followed by zeros, or is missing if ``image`` is None."""
    if image is None:
        if file.exists():
            raise BrokenPromiseError(f"{file.name} was removed or never completed, but exists")
        return
    if not file.exists():
        raise BrokenPromiseError(f"{file.name} was completed with {image.name}, but is missing")
    with file.open("rb") as disk:
        digest = hashlib.sha256(disk.read(image.raw_size)).hexdigest()
        if digest != image.raw_digest:
            raise BrokenPromiseError(f"{file.name} does not contain {image.name}")
        if any(any(piece) for piece in _data_after(disk.fileno(), image.raw_size)):
            raise BrokenPromiseError(f"{file.name} has stale data after the image")


def _data_after(fd: int, start: int):
    """Yield the data (not the holes) from ``start`` on, a MiB at a time."""
    while True:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        piece = os.pread(fd, MIB, start)
        if not piece:
            return
        yield piece
        start += len(piece)


def check_nothing_left(lab: Harness, clients: Sequence[Client]) -> None:
    """Check that no staged volume, child process or open volume is left, and that every cached image has its file."""
    expected = {f"{name}.raw" for client in clients for name, image in client.holds.items() if image is not None}
    found = {path.name for path in lab.volumes.iterdir() if path.is_file() and not path.name.startswith(".")}
    if found != expected:
        raise BrokenPromiseError(f"volumes: {sorted(found)}, expected {sorted(expected)}")
    stage = lab.volumes / ".lvp" / "stage"
    staged = sorted(path.name for path in stage.iterdir()) if stage.is_dir() else []
    if staged:
        raise BrokenPromiseError(f"staged volumes were left behind: {staged}")
    if children := lab.daemon.children():
        raise BrokenPromiseError(f"child processes were left behind: {children}")
    if holders := holders_of(lab.volumes):
        raise BrokenPromiseError(f"processes {holders} have files in the folder of volumes open")
    images = lab.call("GET", "/api/v1/cache/images").json()["images"]
    missing = [image["path"] for image in images if not Path(image["path"]).is_file()]
    if missing:
        raise BrokenPromiseError(f"the cache lists files that are missing: {missing}")


def check_log(lab: Harness) -> None:
    """Check that no traceback was logged."""
    text = lab.daemon.log_file.read_text(errors="replace")
    if "Traceback" in text:
        raise BrokenPromiseError(f"a traceback in {lab.daemon.log_file}")


def figures(lab: Harness) -> Figures:
    """Read the daemon's memory, descriptors and threads from /proc."""
    process = Path("/proc") / str(lab.daemon.pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Figures(
        rss_mib=round(int(status["VmRSS"].split()[0]) / 1024, 1),
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
    )
