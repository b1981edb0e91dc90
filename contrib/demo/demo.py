"""`make demo`: provisions a real image with the embedded default configuration, on this machine only.

Builds a disk image with a file system full of files, serves it over HTTP on loopback and counts the downloads, starts
`lvp serve` without a configuration, provisions a volume from the image twice, and compares every byte.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "demo-data"
LVP = str(Path(sys.executable).with_name("lvp"))
# Files that every Debian or Ubuntu has: a few dozen MiB of text and translations.
CONTENT = ("/usr/share/doc", "/usr/share/perl", "/usr/share/zoneinfo", "/usr/share/man", "/usr/lib/python3")


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def build_image(folder: Path) -> Path:
    """Create a qcow2 image (zlib) of a 2 GiB disk with an ext4 file system with real files, and its .sha256."""
    tree, raw, image = folder / "tree", folder / "disk.raw", folder / "demo.qcow2"
    tree.mkdir(parents=True)
    for source in map(Path, CONTENT):
        if source.is_dir():
            shutil.copytree(source, tree / source.name, symlinks=True, ignore_dangling_symlinks=True)
    with raw.open("wb") as file:
        file.truncate(2 * 2**30)
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "mkfs.ext4"
    subprocess.run([mkfs, "-q", "-F", "-L", "demo", "-d", str(tree), str(raw)], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(raw), str(image)], check=True)
    shutil.rmtree(tree)
    raw.unlink()
    digest = hashlib.file_digest(image.open("rb"), "sha256").hexdigest()
    image.with_name("demo.qcow2.sha256").write_text(f"{digest}  demo.qcow2\n")
    return image


class CountingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and counts how often the image itself is fetched."""

    fetched = 0

    def do_GET(self) -> None:
        if self.headers.get("Range") == "bytes=0-0":  # a look at size and version; this server knows no ranges
            self.do_HEAD()
            return
        if self.path == "/demo.qcow2":
            CountingHandler.fetched += 1
        super().do_GET()

    def log_message(self, *_args: object) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_ready(url: str, daemon: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if daemon.poll() is not None:
            raise SystemExit("the daemon did not start")
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the daemon did not become ready within 30 s")


def provision(environment: dict[str, str], image_url: str, volume: str) -> None:
    command = [LVP, "job", "submit", image_url, volume, "2", "--wait"]
    print("$ lvp " + " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, env=environment)


def main() -> None:
    if HERE.exists():
        say("removing demo-data of an earlier run")
        shutil.rmtree(HERE)
    say("building a real image: a 2 GiB disk with ext4 and files of this machine, as compressed qcow2")
    image = build_image(HERE / "www")
    print(f"{image} ({image.stat().st_size // 2**20} MiB), with its checksum beside it")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(CountingHandler, directory=str(HERE / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    image_url = f"http://127.0.0.1:{server.server_port}/demo.qcow2"

    bind = f"127.0.0.1:{free_port()}"
    data = HERE / "data"
    say("starting the daemon without a configuration")
    print(f"$ lvp serve --data-dir {data.relative_to(ROOT)} --bind {bind}", flush=True)
    log = (HERE / "daemon.log").open("wb")
    daemon = subprocess.Popen([LVP, "serve", "--data-dir", str(data), "--bind", bind], stderr=log)
    try:
        url = f"http://{bind}"
        wait_ready(url, daemon)
        environment = {**os.environ, "LVP_URL": url, "LVP_TOKEN": (data / "client-token").read_text().strip()}
        say("provisioning a volume from the image")
        provision(environment, image_url, "demo-1")
        say("provisioning a second volume: the image comes from the cache")
        provision(environment, image_url, "demo-2")
        say("comparing every byte with the image")
        for name in ("demo-1", "demo-2"):
            volume = data / "volumes" / f"{name}.raw"
            subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(volume)], check=True)
            used = volume.stat().st_blocks * 512 // 2**20
            print(f"{volume.relative_to(ROOT)}: {volume.stat().st_size // 2**30} GiB, {used} MiB of it allocated")
        print(f"the image was downloaded {CountingHandler.fetched} time(s)")
        if CountingHandler.fetched != 1:
            raise SystemExit("the second volume should have been a cache hit")
        subprocess.run([LVP, "job", "list"], check=True, env=environment)
    finally:
        daemon.terminate()
        daemon.wait(30)
        server.shutdown()
    say("done; the volumes, the cache and the daemon's log are in demo-data")


if __name__ == "__main__":
    main()
