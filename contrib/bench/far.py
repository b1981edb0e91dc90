"""Compares downloads from a far server that limits each connection: ours over one and up to four, curl, and aria2.

    python contrib/bench/far.py [--size 64] [--runs 3] [--rtt 80] [--rate 2 --rate 8 --rate 0]

nginx stands behind a proxy that adds a round-trip time and limits each connection to ``--rate`` MiB/s (0: no limit),
as loss on the way or the server itself does. Runs are interleaved, each into a fresh file, and every digest is checked.
aria2c is left out if it is not installed. Quote ratios rather than seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from delay_proxy import DelayProxy
from download import make_image
from series import CELLS, MIB, Series

from lvp_source_http import HttpSettings, HttpSource
from provisioner.contracts import BackEndContext, ImageUrl
from provisioner.download.fetch import fetch
from provisioner.download.growing_file import GrowingFile
from tests.servers.nginx import nginx

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "ours, up to 4 ranges"


async def ours(url: str, path: Path, ranges: int) -> None:
    source = HttpSource(HttpSettings(urls=[url]), BackEndContext("bench", path.parent))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    image = await source.stat(ImageUrl.parse(url))
    await fetch(source, image, GrowingFile(fd, limit=2**63), 1, lambda _count: None, ranges)
    os.close(fd)
    await source.aclose()


def contenders(url: str) -> dict[str, Callable[[Path], object]]:
    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def aria2(path: Path) -> None:
        run(
            "aria2c", "-q", "-x4", "-s4", "-k1M", "--file-allocation=none", "-d", str(path.parent), "-o", path.name, url
        )

    found: dict[str, Callable[[Path], object]] = {
        OURS: lambda path: trio.run(ours, url, path, 4),
        "ours, one connection": lambda path: trio.run(ours, url, path, 1),
        "curl -o": lambda path: run("curl", "-sSf", "-o", str(path), url),
    }
    if shutil.which("aria2c"):
        found["aria2c -x4"] = aria2
    return found


def measure(url: str, target: Path, digest: str, runs: int) -> dict[str, Series]:
    works = contenders(url)
    table = {name: Series() for name in works}
    for _ in range(runs):
        for name, work in works.items():
            target.unlink(missing_ok=True)
            with table[name].timed():
                work(target)
            if hashlib.sha256(target.read_bytes()).hexdigest() != digest:
                raise SystemExit(f"{name}: the digest is wrong")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="MiB of the image")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rtt", type=float, default=80, help="milliseconds")
    parser.add_argument("--rate", type=float, action="append", help="MiB/s of each connection; repeatable")
    options = parser.parse_args()
    print(f"| each connection | with | ours / this | {CELLS} |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="lvp-bench-") as folder:
        image = Path(folder, "root", "image.raw")
        image.parent.mkdir()
        digest = make_image(image, options.size * MIB)
        with nginx(image.parent, Path(folder, "nginx")) as web, DelayProxy(int(web.url.rpartition(":")[2])) as proxy:
            proxy.rtt = options.rtt / 1000
            for rate in options.rate or [2.0, 8.0, 0.0]:
                proxy.bytes_per_second = rate * MIB or None
                url = f"http://127.0.0.1:{proxy.port}/{image.name}"
                table = measure(url, Path(folder, "target"), digest, options.runs)
                best = table[OURS].median
                limit = f"{rate:g} MiB/s" if rate else "no limit"
                for name, series in table.items():
                    print(f"| {limit} | {name} | {best / series.median:.2f} | {series.cells} |", flush=True)


if __name__ == "__main__":
    main()
