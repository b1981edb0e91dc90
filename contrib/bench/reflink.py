"""Compares cloning a volume in a folder with a full copy and with a bare reflink, on XFS and btrfs.

    python contrib/bench/reflink.py          needs root, xfsprogs and btrfs-progs

For each file system, on a loop device over a file in --folder, one run interleaves: a whole job through the pipeline
(ask the server, find the base, clone, commit); the bare `cp --reflink=always` and `truncate`. Then the base is copied
by `cp --reflink=never` and `truncate`. Each ends when the volume is on disk. The images of two sizes are full of random
data. The folder needs four times the size of the larger image. Removes everything it created.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clone import GIB, MIB, digest, run, say, served, volume_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_target_file import FileCloneTarget
    from provisioner.pipeline.pipeline import Pipeline

COPY, JOB, BARE = "copy", "job", "bare"
COPIES = 3
MAKE = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}
# A clone job with a checksum does not read the image, so the source only needs to serve a file of that name.
CONFIG = """
state_directory = "{folder}/state"
auth = {{ client_token = "{folder}/token" }}
cache = {{ min_free = "1MiB" }}
sources.http = {{ plugin = "http", urls = ["http://127.0.0.1:*"] }}
targets.images = {{ plugin = "file", directory = "{images}" }}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for the file systems")
    parser.add_argument("--sizes", type=int, nargs=2, default=[256, 2048], help="MiB of data in the two images")
    parser.add_argument("--runs", type=int, default=31)
    options = parser.parse_args()
    import trio

    for kind in MAKE:
        with tempfile.TemporaryDirectory(prefix="lvp-bench-", dir=options.folder) as folder:
            size = 2 * sum(options.sizes) * MIB + 4 * GIB
            with mounted(kind, Path(folder), size) as images:
                bench = Bench(kind, images, Path(folder), options)
                trio.run(bench.run)
                bench.show()
    return 0


@contextmanager
def mounted(kind: str, folder: Path, size: int) -> Iterator[Path]:
    """Make and mount a file system; yield its folder."""
    disk, mount = folder / "disk", folder / "images"
    with disk.open("wb") as file:
        file.truncate(size)
    run(*MAKE[kind], disk)
    mount.mkdir()
    run("mount", "-o", "loop", disk, mount)
    try:
        yield mount
    finally:
        run("umount", mount)


class Bench:
    """The benchmark on one file system; ``times`` has the seconds by contender and size in MiB."""

    def __init__(self, kind: str, images: Path, folder: Path, options: argparse.Namespace) -> None:
        self.kind, self.images, self.folder = kind, images, folder
        self.sizes, self.runs = options.sizes, options.runs
        self.times: dict[tuple[str, int], list[float]] = defaultdict(list)

    async def run(self) -> None:
        import trio

        from provisioner import registry
        from provisioner.cache import ImageCache
        from provisioner.config import load
        from provisioner.pipeline.pipeline import Pipeline

        (config_file := self.folder / "config.toml").write_text(CONFIG.format(folder=self.folder, images=self.images))
        config = load(config_file)
        back_ends = registry.load().build(config)
        cache = ImageCache(self.folder / "cache", config.cache)
        with served(self.folder) as url:
            async with trio.open_nursery() as nursery:
                await nursery.start(cache.run)
                await self._measure(Pipeline(back_ends, cache, require_checksum=True), url)
                nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await back_ends.aclose()

    async def _measure(self, pipeline: Pipeline, url: str) -> None:
        target: FileCloneTarget = pipeline.back_ends.target("images")  # type: ignore[assignment]
        bases = {}
        for size in self.sizes:
            say(f"{self.kind}: the base of an image of {size} MiB")
            (self.folder / f"{size}.raw").write_bytes(b"never read")
            bases[size] = await self._make_base(target, size)
        # Copies come last: the file system is busy for a while after their removal.
        for number in range(self.runs):
            for size in self.sizes:
                with self._timed(BARE, size):
                    self._copy(bases[size], size, "always")
                (self.images / "bench").unlink()
                with self._timed(JOB, size):
                    await self._job(pipeline, url, size)
                if number == 0:
                    run("cmp", "--bytes", str(size * MIB), bases[size], self.images / "bench-job.raw")
                await target.remove("bench-job")
        for number in range(COPIES):
            for size in self.sizes:
                say(f"{self.kind}: copy {number + 1} of {COPIES}, {size} MiB")
                with self._timed(COPY, size):
                    self._copy(bases[size], size, "never")
                (self.images / "bench").unlink()

    @contextmanager
    def _timed(self, what: str, size: int) -> Iterator[None]:
        os.sync()
        begun = time.perf_counter()
        yield
        self.times[what, size].append(time.perf_counter() - begun)

    def _copy(self, base: Path, size: int, reflink: str) -> None:
        volume = self.images / "bench"
        run("cp", f"--reflink={reflink}", base, volume)
        run("truncate", f"--size={volume_size(size)}", volume)
        run("sync", volume)

    async def _job(self, pipeline: Pipeline, url: str, size: int) -> None:
        from provisioner.contracts import Checksum, ImageUrl, ProvisionedBy
        from provisioner.pipeline.job_run import JobRun, JobSpec

        spec = JobSpec(
            image_url=ImageUrl.parse(f"{url}/{size}.raw"),
            image_format="raw",
            volume_name="bench-job",
            size_bytes=volume_size(size),
            target="images",
            checksum=Checksum.parse(digest(size)),
        )
        job = JobRun("bench", time.time(), spec)
        await pipeline.run(job)
        assert job.outcome is not None
        assert job.outcome.provisioned_by is ProvisionedBy.CLONE

    async def _make_base(self, target: FileCloneTarget, size: int) -> Path:
        import trio

        from provisioner.contracts import Provenance, StageRequest

        def fill(path: str) -> None:
            with Path(path).open("r+b") as file:
                file.writelines(os.urandom(MIB) for _ in range(size))
                os.fsync(file.fileno())

        provenance = Provenance("bench", "http://127.0.0.1/", digest(size), time.time())
        async with target.stage_base(StageRequest("raw", size * MIB, provenance)) as staged:
            await trio.to_thread.run_sync(fill, staged.device.path)
            return Path((await staged.commit(digest(size))).path)

    def show(self) -> None:
        """Print the table and the ratios."""
        small, large = self.sizes
        median = {key: statistics.median(times) for key, times in self.times.items()}
        load = f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors"
        print(f"\n{self.kind}: {self.runs} runs, {COPIES} copies, {load}")
        print(f"| median milliseconds | {small} MiB | {large} MiB |\n| --- | --- | --- |")
        for what, label in ((COPY, "cp --reflink=never"), (JOB, "a clone job"), (BARE, "cp --reflink=always")):
            print(f"| {label} | {1000 * median[what, small]:.1f} | {1000 * median[what, large]:.1f} |")
        for label, ratio, aim in (
            (f"the copy to the clone job, {large} MiB", median[COPY, large] / median[JOB, large], "30 or more"),
            ("the clone job to the bare reflink", median[JOB, large] / median[BARE, large], "at most 2"),
            (f"the clone job of {large} MiB to {small} MiB", median[JOB, large] / median[JOB, small], "under 1.2"),
        ):
            print(f"{label}: {ratio:.2f} (target: {aim})")


if __name__ == "__main__":
    sys.exit(main())
