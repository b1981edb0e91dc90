"""The environment of the soak test: MinIO, a proxy, images, two small file systems, and the daemon."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.end_to_end.daemon import CLIENT, LVP, Daemon, until
from tests.minio.server import Store, minio
from tests.servers.cutting import cutting_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

MIB = 2**20
BUCKET = "images"
STATE_SIZE = 64 * MIB
DATA_SIZE = 6 * 2**30  # a sparse file
CLIENTS = 3


@dataclass(frozen=True)
class Image:
    """An image in MinIO; ``raw_digest`` is the SHA-256 of its disk, ``raw_size`` the disk's length in bytes."""

    name: str
    kind: str
    raw_digest: str
    raw_size: int

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.name}"


@dataclass
class Harness:
    """A daemon with its environment; ``daemon`` stays the same when the process restarts."""

    folder: Path
    daemon: Daemon
    store: Store
    images: list[Image]
    hung_port: int
    admin_token: str = ""
    starts: list[float] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def volumes(self) -> Path:
        return self.data / "volumes"

    @property
    def cache(self) -> Path:
        return self.data / "cache"

    def start(self) -> None:
        begun = time.monotonic()
        self.daemon.start()
        self.starts.append(time.monotonic() - begun)

    def call(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        """Send a request as the administrator. Raises httpx.TransportError if the daemon is not reachable."""
        return CLIENT.request(
            method,
            self.daemon.url + path,
            json=body,
            headers={"X-API-Token": self.admin_token, **headers},
            timeout=60,
        )


@contextmanager
def lab(folder: Path, seed: int) -> Iterator[Harness]:
    """Set up the environment and start the daemon; tear down both when the block ends."""
    with ExitStack() as stack:
        for name, size in (("state", STATE_SIZE), ("data", DATA_SIZE)):
            stack.enter_context(_file_system(folder / f"{name}.img", folder / name, size))
        (folder / "minio").mkdir()
        store = stack.enter_context(minio(folder / "minio"))
        proxy = stack.enter_context(
            cutting_proxy(int(store.host.rpartition(":")[2]), seed=seed, cut_after=(64 * 1024, 40 * MIB), cut_share=0.3)
        )
        hung_port = stack.enter_context(_hung_server())
        images = _make_images(folder / "images", store, seed)
        daemon = Daemon(folder / "daemon", _config(folder, store, proxy.port, hung_port))
        made = Harness(folder, daemon, store, images, hung_port)
        stack.callback(_end, daemon)
        made.admin_token = _make_admin(daemon)
        made.start()
        yield made


def _config(folder: Path, store: Store, proxy_port: int, hung_port: int) -> dict[str, object]:
    for name, secret in (("access", store.access_key), ("secret", store.secret_key)):
        file = folder / f"{name}-key"
        file.touch(mode=0o600)
        file.write_text(secret)
    return {
        "state_directory": str(folder / "state" / "lvp"),
        "server": {"bind": ["127.0.0.1:0"]},
        "auth": {"client_token": str(folder / "daemon" / "client-token")},
        "cache": {"directory": str(folder / "data" / "cache"), "min_free": "16MiB", "max_size": "160MiB"},
        "jobs": {"shutdown_grace": "1s", "max_attempts": 20},
        "log": {"format": "json"},
        "sources": {
            "objects": {
                "plugin": "minio",
                "endpoint": f"https://127.0.0.1:{proxy_port}",
                "ca_file": str(store.ca_file),
                "bare_urls": True,
                "buckets": [BUCKET],
                "access_key": f"file:{folder / 'access-key'}",
                "secret_key": f"file:{folder / 'secret-key'}",
            },
            "hung": {"plugin": "http", "urls": [f"http://127.0.0.1:{hung_port}/"]},
        },
        "targets": {
            "files": {
                "plugin": "file",
                "directory": str(folder / "data" / "volumes"),
                "make_directory": True,
                "overcommit": True,
            }
        },
    }


def _make_admin(daemon: Daemon) -> str:
    """Write the configuration and create an administrator's token."""
    daemon.launch()
    until(lambda: daemon.event("ready"))
    command = [*LVP, "token", "create", "soak", "--role", "admin", "--config", str(daemon.folder / "config.toml")]
    token = subprocess.run(command, check=True, capture_output=True, text=True, env=daemon.environment).stdout.strip()
    daemon.stop()
    return token


def _end(daemon: Daemon) -> None:
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.kill()


@contextmanager
def _file_system(image: Path, where: Path, size: int) -> Iterator[None]:
    """Mount a small ext4 file system, which can be filled safely."""
    with image.open("wb") as file:
        file.truncate(size)
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True, env=environment)
    where.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=False)


@contextmanager
def _hung_server() -> Iterator[int]:
    """Run a server that accepts connections and never answers; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(listening.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def _make_images(folder: Path, store: Store, seed: int) -> list[Image]:
    """Upload six images, sparse and full, in different formats, with checksum files."""
    folder.mkdir()
    noise = random.Random(seed)
    store.client().make_bucket(BUCKET)
    forms = [("raw", []), ("qcow2", []), ("qcow2", ["-c"]), ("qcow2", ["-c", "-o", "compression_type=zstd"])]
    images = []
    for number in range(6):
        kind, options = forms[number % len(forms)]
        raw, file = folder / f"{number}.disk", folder / f"image-{number}.{kind}"
        size = (16 + 8 * number) * MIB
        with raw.open("wb") as disk:
            disk.truncate(size)
            for offset in range(0, size, 2 * MIB if number % 2 else MIB):
                disk.seek(offset)
                disk.write(noise.randbytes(MIB))
        if kind == "raw":
            raw.rename(file)
            raw = file
        else:
            command = ["qemu-img", "convert", "-q", "-f", "raw", "-O", kind, *options, str(raw), str(file)]
            subprocess.run(command, check=True)
        raw_digest = hashlib.sha256(raw.read_bytes()).hexdigest()
        content = file.read_bytes()
        store.put(BUCKET, file.name, content)
        store.put(BUCKET, f"{file.name}.sha256", f"{hashlib.sha256(content).hexdigest()}  {file.name}\n".encode())
        images.append(Image(file.name, kind, raw_digest, size))
        for leftover in {raw, file}:
            leftover.unlink()
    return images
