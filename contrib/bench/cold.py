"""Compares a cold provision with its download alone, its conversion alone, and the usual tools one after the other.

    python contrib/bench/cold.py --size 512 --runs 3 [--kind zlib ...] [--rate 100 ...] [--folder /var/tmp]

Runs the daemon's cache and pipeline in this process, from nginx on loopback (limited to RATE MB/s; 0: unlimited) onto a
file. Runs are interleaved, and every volume is compared with the disk. The tools: `curl -o`, `sha256sum`, `qemu-img
convert`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio
from convert import KINDS, flush, make_images, run
from series import CELLS, MIB, Series

from provisioner.cache import ImageCache
from provisioner.config import parse
from provisioner.contracts import GIB, ImageUrl
from provisioner.pipeline.job_run import JobRun, JobSpec
from provisioner.pipeline.pipeline import Pipeline
from provisioner.registry import load
from tests.servers.nginx import nginx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COLD, DOWNLOAD, CONVERSION, STEPS = "cold provision", "its download", "its conversion", "curl, sha256sum, qemu-img"


class Ours:
    """A cache and a pipeline in ``folder``."""

    def __init__(self, folder: Path, base: str, form: str, **cache: str) -> None:
        self.folder, self.form, self.numbers = folder, form, count()
        self.config = parse(
            {
                "state_directory": str(folder / "state"),
                "cache": {"require_checksum": False, "min_free": "1MiB", **cache},
                "sources": {"http": {"plugin": "http", "urls": [base]}},
                "targets": {
                    "files": {
                        "plugin": "file",
                        "directory": str(folder / "volumes"),
                        "make_directory": True,
                        "overcommit": True,
                    }
                },
            },
            "bench",
        )

    def provision(self, url: str, volume: str | None) -> None:
        trio.run(self._provision, url, volume)

    async def _provision(self, url: str, volume: str | None) -> None:
        back_ends = load().build(self.config)
        cache = ImageCache(Path(self.config.cache_directory), self.config.cache)
        pipeline = Pipeline(back_ends, cache, self.config.cache.require_checksum)
        spec = JobSpec(
            image_url=ImageUrl.parse(url), image_format=self.form, volume_name=volume, size_bytes=GIB, target="files"
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: cache.run(task_status=task_status))
            await pipeline.run(JobRun(f"bench-{next(self.numbers)}", time.time(), spec))
            nursery.cancel_scope.cancel()
        await back_ends.aclose()

    def forget(self, *, images: bool) -> None:
        shutil.rmtree(self.folder / "volumes", ignore_errors=True)
        (self.folder / "volumes").mkdir()
        if images:
            shutil.rmtree(self.folder / "state", ignore_errors=True)

    def volume(self) -> Path:
        return next(path for path in (self.folder / "volumes").glob("disk*") if path.is_file())


def steps(url: str, folder: Path, form: str) -> None:
    fetched, made = folder / "fetched", folder / "made.raw"
    run("curl", "-sSf", "-o", fetched, url)
    run("sha256sum", fetched)
    run("qemu-img", "convert", "-f", form, "-O", "raw", fetched, made)
    flush(made)


def measure(ours: Ours, url: str, disk: Path, runs: int) -> dict[str, Series]:
    """Measure all contenders, interleaved. The conversion uses the image that the download before it cached."""
    works: dict[str, tuple[bool, Callable[[], None]]] = {
        DOWNLOAD: (True, partial(ours.provision, url, None)),
        CONVERSION: (False, partial(ours.provision, url, "disk")),
        COLD: (True, partial(ours.provision, url, "disk")),
        STEPS: (True, partial(steps, url, ours.folder, ours.form)),
    }
    table = {name: Series() for name in works}
    for turn in range(runs + 1):  # the first run warms the page cache and does not count
        for name, (fresh, work) in works.items():
            ours.forget(images=fresh)
            os.sync()
            with table[name].timed(counted=turn > 0):
                work()
            made = {COLD: ours.volume, CONVERSION: ours.volume, STEPS: lambda: ours.folder / "made.raw"}.get(name)
            if turn == 0 and made is not None and not begins_with(made(), disk):
                raise SystemExit(f"{name} wrote wrong data")
    return table


def begins_with(volume: Path, disk: Path) -> bool:
    command = ["cmp", "--quiet", f"--bytes={disk.stat().st_size}", volume, disk]
    return subprocess.run(command, check=False).returncode == 0


def lines(kind: str, rate: int, table: dict[str, Series]) -> Iterator[str]:
    cold = table[COLD].median
    slower = max(table[DOWNLOAD].median, table[CONVERSION].median)
    speed = f"{rate} MB/s" if rate else "unlimited"
    yield f"| {kind} | {speed} | the slower of download and conversion | **{cold / slower:.2f}** | {slower:.2f} | |"
    for name, series in table.items():
        yield f"| {kind} | {speed} | {name} | {cold / series.median:.2f} | {series.cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the disk (default 1024)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--kind", action="append", choices=sorted(KINDS))
    parser.add_argument("--rate", action="append", type=int, help="MB/s; 0: unlimited")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    print(f"| image | source | | cold / this | {CELLS} |\n|---|---|---|---|---|---|")
    kinds = options.kind or ["zlib", "zstd", "raw-full"]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lvp-bench-") as name:
        folder = Path(name)
        (folder / "www").mkdir()
        images = make_images(folder / "www", options.size * MIB, kinds)
        with nginx(folder / "www", folder / "nginx") as web:
            for kind in kinds:
                ours = Ours(folder, web.url, KINDS[kind][0])
                for rate in options.rate or [100, 200, 400, 0]:
                    url = f"{web.url}/{images[kind].name}" + (f"?rate={rate * 10**6}" if rate else "")
                    disk = images["raw-full" if kind == "raw-full" else "raw-half"]
                    print(*lines(kind, rate, measure(ours, url, disk, options.runs)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
