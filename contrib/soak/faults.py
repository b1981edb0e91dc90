"""The faults, one for each round, injected while the clients work. Each function returns when the fault is over."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from contrib.soak.lab import Harness


def none(_lab: Harness, _chance: random.Random) -> None:
    """Inject no fault."""


def kill(lab: Harness, chance: random.Random) -> None:
    """Send SIGKILL at a random moment, then start again."""
    time.sleep(chance.random() * 5)
    lab.daemon.kill()
    lab.start()


def stop(lab: Harness, chance: random.Random) -> None:
    """Send SIGTERM at a random moment, then start again."""
    time.sleep(chance.random() * 5)
    lab.daemon.stop()
    lab.start()


def reload(lab: Harness, chance: random.Random) -> None:
    """Send several SIGHUPs."""
    for _ in range(chance.randint(2, 5)):
        lab.daemon.process.send_signal(signal.SIGHUP)
        time.sleep(chance.random())


def state_full(lab: Harness, chance: random.Random) -> None:
    """Fill the job store's file system for a moment."""
    _fill(lab.state, chance)


def data_full(lab: Harness, chance: random.Random) -> None:
    """Fill the file system of cache and volumes for a moment."""
    _fill(lab.data, chance)


def _fill(where: Path, chance: random.Random) -> None:
    filler = where / "filler"
    status = os.statvfs(where)
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)
        file.seek(0, os.SEEK_END)
        with suppress(OSError):  # the blocks that were not needed for metadata
            while True:
                file.write(bytes(4096))
    time.sleep(1 + 3 * chance.random())
    filler.unlink()


def freeze(lab: Harness, chance: random.Random) -> None:
    """Stop the daemon for a moment; its clocks continue."""
    lab.daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(1 + 2 * chance.random())
    lab.daemon.process.send_signal(signal.SIGCONT)


def freeze_source(lab: Harness, chance: random.Random) -> None:
    """Stop MinIO for a moment."""
    os.kill(lab.store.pid, signal.SIGSTOP)
    time.sleep(2 + 4 * chance.random())
    os.kill(lab.store.pid, signal.SIGCONT)


def hung_source(lab: Harness, chance: random.Random) -> None:
    """Submit a job whose source never answers; it occupies a worker until it is cancelled."""
    body = {
        "image_url": f"http://127.0.0.1:{lab.hung_port}/image.raw",
        "volume_name": "soak-hung",
        "volume_size_gb": 1,
        "image_type": "raw",
        "checksum": "sha256:" + "0" * 64,
    }
    with suppress(httpx.TransportError):
        answer = lab.call("POST", "/api/v1/jobs", body)
        if answer.status_code == 202:
            time.sleep(2 + 3 * chance.random())
            lab.call("POST", f"/api/v1/jobs/{answer.json()['job_id']}/cancel")


def deaf_reader(lab: Harness, chance: random.Random) -> None:
    """Open connections that request long responses and never read them."""
    host, _, port = lab.daemon.url.removeprefix("http://").rpartition(":")
    held = []
    for _ in range(8):
        with suppress(OSError):
            connection = socket.create_connection((host, int(port)), timeout=5)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: soak\r\n\r\n" * 20)
            held.append(connection)
    time.sleep(2 + 2 * chance.random())
    for connection in held:
        connection.close()


FAULTS: dict[str, Callable[[Harness, random.Random], None]] = {
    "none": none,
    "kill": kill,
    "stop": stop,
    "reload": reload,
    "state-full": state_full,
    "data-full": data_full,
    "freeze": freeze,
    "freeze-source": freeze_source,
    "hung-source": hung_source,
    "deaf-reader": deaf_reader,
}
