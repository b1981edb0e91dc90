"""Compares our download, with hashing and inspection, with curl, and with curl followed by sha256sum.

    python contrib/bench/download.py --size 1024 --runs 7 [--folder /dev/shm] [--server minio]

From servers on loopback: nginx, plain and with TLS, and MinIO with TLS (built at the first use). Runs are interleaved,
each into a fresh file, and every digest is checked. Quote ratios rather than seconds; below 1 is faster.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from series import CELLS, MIB, Series

from lvp_source_http import HttpSettings, HttpSource
from lvp_source_s3 import MinioSettings, S3Source
from provisioner.contracts import BackEndContext, ImageUrl, SecretRef
from provisioner.download.growing_file import GrowingFile
from provisioner.download.hashing import hash_and_inspect
from tests.minio.server import minio
from tests.servers.nginx import nginx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from provisioner.contracts import ImageSource

OURS = "ours: saved, sha256, inspected"


@dataclass(frozen=True)
class Served:
    """An image on a server: our source and url for it, and the url and CA file for curl."""

    source: Callable[[], ImageSource]
    url: str
    curl_url: str
    ca_file: Path


def make_image(path: Path, size: int) -> str:
    """Create an incompressible file; return its digest."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@contextmanager
def serving(server: str, image: Path, work: Path) -> Iterator[Served]:
    context = BackEndContext("bench", work)
    if server == "minio":
        with minio(work) as store:
            store.client().make_bucket("images")
            store.client().fput_object("images", image.name, str(image))
            keys = {}
            for name in ("access_key", "secret_key"):
                (work / name).write_text(getattr(store, name))
                keys[name] = SecretRef(f"file:{work}/{name}")
            settings = MinioSettings(endpoint=store.url, ca_file=str(store.ca_file), **keys)
            signed = store.client().presigned_get_object("images", image.name)
            yield Served(lambda: S3Source(settings, context), f"{store.url}/images/{image.name}", signed, store.ca_file)
    else:
        with nginx(image.parent, work) as web:
            base = web.url if server == "http" else web.tls_url
            settings = HttpSettings(urls=[base], ca_file=str(web.ca_file))
            url = f"{base}/{image.name}"
            yield Served(lambda: HttpSource(settings, context), url, url, web.ca_file)


async def fetch(served: Served, path: Path, *, hashed: bool) -> str | None:
    """Download as a provision does: one thread saves, another hashes and inspects what is saved."""
    source, digests = served.source(), dict[str, str]()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    growing_file = GrowingFile(fd, limit=2**63)

    async def hash_it() -> None:
        hashes = await trio.to_thread.run_sync(hash_and_inspect, growing_file, ["sha256"], lambda _info: None)
        digests.update(hashes.digests)

    async with trio.open_nursery() as nursery:
        if hashed:
            nursery.start_soon(hash_it)
        async with source.open(ImageUrl.parse(served.url)) as stream:
            await stream.save(fd, growing_file.advance)
        growing_file.finish()
    os.close(fd)
    await source.aclose()
    return digests.get("sha256")


def contenders(served: Served) -> dict[str, Callable[[Path], str | None]]:
    def curl(path: Path) -> None:
        command = ["curl", "-sSf", "--cacert", str(served.ca_file), "-o", str(path), served.curl_url]
        subprocess.run(command, check=True)

    def curl_and_sum(path: Path) -> str:
        curl(path)
        found = subprocess.run(["sha256sum", str(path)], check=True, capture_output=True, text=True)
        return found.stdout.split()[0]

    return {
        OURS: lambda path: trio.run(lambda: fetch(served, path, hashed=True)),
        "ours: saved only": lambda path: trio.run(lambda: fetch(served, path, hashed=False)),
        "curl -o": curl,
        "curl -o && sha256sum": curl_and_sum,
    }


def measure(served: Served, target: Path, digest: str, runs: int) -> dict[str, Series]:
    works = contenders(served)
    table = {name: Series() for name in works}
    for turn in range(runs + 1):  # the first run warms the page cache and does not count
        for name, work in works.items():
            target.unlink(missing_ok=True)
            with table[name].timed(counted=turn > 0):
                found = work(target)
            if found not in {None, digest}:
                raise SystemExit(f"{name}: the digest is wrong")
    return table


def lines(server: str, size: int, table: dict[str, Series]) -> Iterator[str]:
    ours = table[OURS].median
    for name, series in table.items():
        yield (
            f"| {server} | {name} | {ours / series.median:.2f} | {series.cells} | {size / MIB / series.median:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the image (default 1024)")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--server", action="append", choices=["http", "https", "minio"])
    options = parser.parse_args()
    size = options.size * MIB
    print(f"| server | with | ours hashed / this | {CELLS} | MiB/s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lvp-bench-") as folder:
        image = Path(folder, "root", "image.raw")
        image.parent.mkdir()
        digest = make_image(image, size)
        for server in options.server or ["http", "https"]:
            work = Path(folder, server)
            work.mkdir()
            with serving(server, image, work) as served:
                table = measure(served, Path(folder, "target"), digest, options.runs)
            print(*lines(server, size, table), sep="\n", flush=True)
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
