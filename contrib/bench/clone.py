"""Compares cloning a thin volume with a copy by qemu-img and with the bare LVM commands.

    python contrib/bench/clone.py --guest [--wheel FILE]                 in the test guest, under emulation
    python contrib/bench/clone.py --volume-group VG --pool POOL          on this host; needs root

One run interleaves: `lvcreate` and `qemu-img convert` of a qcow2 image onto a linear volume; a whole job through the
pipeline (ask the server, find the base, clone, commit); the bare `lvcreate -s`, `lvextend`, `lvrename`. Each for images
of two sizes, full of this machine's programs and libraries, and compressed with zlib as distributions publish theirs
(unless `--plain`). The volume group needs three times the size of the larger image, two of them in the pool. Removes
everything it created. Quote ratios rather than seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_target_lvm import ThinCloneTarget
    from provisioner.pipeline.pipeline import Pipeline

MIB, GIB = 1024**2, 1024**3
COPY, JOB, BARE = "copy", "job", "bare"
# A clone job with a checksum does not read the image, so the source only needs to serve a file of that name.
CONFIG = """
state_directory = "{folder}/state"
auth = {{ client_token = "{folder}/token" }}
cache = {{ min_free = "1MiB" }}
sources.http = {{ plugin = "http", urls = ["http://127.0.0.1:*"] }}
targets.thin = {{ plugin = "thin-lvm", volume_group = "{group}", pool = "{pool}" }}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guest", action="store_true", help="boot the test guest and measure in it")
    parser.add_argument("--wheel", type=Path, help="the built project, for the guest")
    parser.add_argument("--volume-group")
    parser.add_argument("--pool")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="for the images")
    parser.add_argument("--sizes", type=int, nargs=2, default=[256, 2048], help="MiB of data in the two images")
    parser.add_argument("--images", type=Path, nargs=2, help="existing images of those sizes")
    parser.add_argument("--plain", action="store_true", help="images without compression")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if options.guest:
        return in_guest(options)
    if not options.volume_group or not options.pool:
        parser.error("give --volume-group and --pool, or --guest")
    import trio

    with ExitStack() as stack:
        bench = Bench(options, Path(tempfile.mkdtemp(prefix="lvp-bench-", dir=options.folder)))
        stack.callback(bench.clean)
        trio.run(bench.run)
    return 0


def in_guest(options: argparse.Namespace) -> int:
    """Boot the guest, create a volume group with a pool, and measure there."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.guest.harness import Guest
    from tests.guest.harness.drives import TEST_DRIVES, Drive

    # Compress the images here and attach them as disks: under emulation, compressing would take an hour.
    drives = [Drive(f"image-{size}", size * MIB + GIB, read_only=True) for size in options.sizes]
    with Guest(wheel=options.wheel, drives=[*TEST_DRIVES[:2], *drives]) as guest:
        for size, drive in zip(options.sizes, drives, strict=True):
            disk = guest.directory / f"{drive.name}.raw"
            make_image(disk, size, compressed=not options.plain)
            os.truncate(disk, drive.size)
        guest.boot()
        guest.sh(
            "vgcreate -qy bench /dev/disk/by-id/virtio-plain /dev/disk/by-id/virtio-thin;"
            "lvcreate -qy --type thin-pool -L 7G -n pool bench"
        )
        command = [
            "python3", "/project/contrib/bench/clone.py", "--volume-group", "bench", "--pool", "pool",
            "--runs", str(options.runs), "--sizes", *map(str, options.sizes),
            "--images", *(f"/dev/disk/by-id/virtio-{drive.name}" for drive in drives),
        ]  # fmt: skip
        show = partial(print, end="", flush=True)
        status = guest.run(command, sink=lambda piece: show(piece.decode()), silence=1800, total=5400).status
        # Then convert raw images onto linear and thin volumes.
        guest.sh("lvcreate -qy -L 512m -n linear bench; lvcreate -qy -V 512m --thinpool bench/pool -n thin")
        command = [
            "python3", "/project/contrib/bench/convert.py", "--size", "256", "--folder", "/var/tmp",
            "--kind", "raw-full", "--kind", "raw-half", "--device", "/dev/bench/linear", "--device", "/dev/bench/thin",
        ]  # fmt: skip
        return status or guest.run(command, sink=lambda piece: show(piece.decode()), silence=600, total=1800).status


class Bench:
    """The benchmark; ``times`` has the seconds by contender and size in MiB."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.group, self.pool = options.volume_group, options.pool
        self.sizes, self.runs, self.folder = options.sizes, options.runs, folder
        self.images = dict(zip(self.sizes, options.images or [], strict=False))
        self.compressed = not options.plain
        self.times: dict[tuple[str, int], list[float]] = defaultdict(list)
        self.calls = ""

    async def run(self) -> None:
        import trio

        from provisioner import registry
        from provisioner.cache import ImageCache
        from provisioner.config import load
        from provisioner.pipeline.pipeline import Pipeline

        (config_file := self.folder / "config.toml").write_text(
            CONFIG.format(folder=self.folder, group=self.group, pool=self.pool)
        )
        config = load(config_file)
        back_ends = registry.load().build(config)
        cache = ImageCache(self.folder / "cache", config.cache)
        with served(self.folder) as url:
            async with trio.open_nursery() as nursery:
                await nursery.start(cache.run)
                pipeline = Pipeline(back_ends, cache, require_checksum=True)
                await self._measure(pipeline, url)
                nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await back_ends.aclose()
        self._show()

    async def _measure(self, pipeline: Pipeline, url: str) -> None:
        target: ThinCloneTarget = pipeline.back_ends.target("thin")  # type: ignore[assignment]
        bases = {}
        for size in self.sizes:
            say(f"an image of {size} MiB and its base")
            served_file = self.folder / f"{size}.qcow2"
            if size in self.images:
                served_file.write_bytes(b"never read")
            else:
                make_image(served_file, size, compressed=self.compressed)
                self.images[size] = served_file
            bases[size] = await self._make_base(target, size)
        for number in range(self.runs):
            for size in self.sizes:
                say(f"run {number + 1} of {self.runs}, {size} MiB")
                with self._timed(COPY, size):
                    self._copy(size)
                lvm("lvremove", f"{self.group}/bench-copy")
                with self._timed(BARE, size):
                    self._bare(bases[size], size)
                lvm("lvremove", f"{self.group}/bench-bare")
                target.lvm.calls.clear()
                with self._timed(JOB, size):
                    await self._job(pipeline, url, size)
                self.calls = ", ".join(f"{count} {name}" for name, count in sorted(target.lvm.calls.items()))
                if number == 0:
                    self._compare(size)
                await target.remove("bench-job")

    @contextmanager
    def _timed(self, what: str, size: int) -> Iterator[None]:
        os.sync()
        begun = time.perf_counter()
        yield
        self.times[what, size].append(time.perf_counter() - begun)

    # --- the contenders ---

    def _copy(self, size: int) -> None:
        lvm("lvcreate", "--size", f"{volume_size(size)}b", "--name", "bench-copy", self.group)
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.images[size], f"/dev/{self.group}/bench-copy")

    def _bare(self, base: str, size: int) -> None:
        lvm("lvcreate", "-s", "-kn", "-prw", "--name", "bench-stage", f"{self.group}/{base}")
        lvm("lvextend", "--size", f"{volume_size(size)}b", f"{self.group}/bench-stage")
        lvm("lvrename", self.group, "bench-stage", "bench-bare")

    async def _job(self, pipeline: Pipeline, url: str, size: int) -> None:
        from provisioner.contracts import Checksum, ImageUrl, ProvisionedBy
        from provisioner.pipeline.job_run import JobRun, JobSpec

        spec = JobSpec(
            image_url=ImageUrl.parse(f"{url}/{size}.qcow2"),
            volume_name="bench-job",
            size_bytes=volume_size(size),
            target="thin",
            checksum=Checksum.parse(digest(size)),
        )
        run = JobRun("bench", time.time(), spec)
        await pipeline.run(run)
        assert run.outcome is not None
        assert run.outcome.provisioned_by is ProvisionedBy.CLONE

    # --- before and after ---

    async def _make_base(self, target: ThinCloneTarget, size: int) -> str:
        import trio

        from provisioner.contracts import Provenance, StageRequest

        provenance = Provenance("bench", "http://127.0.0.1/", digest(size), time.time())
        async with target.stage_base(StageRequest("qcow2", size * MIB, provenance)) as staged:
            options = ("-n", "-f", "qcow2", "-O", "raw")
            await trio.to_thread.run_sync(run, "qemu-img", "convert", *options, self.images[size], staged.device.path)
            return (await staged.commit(digest(size))).name

    def _compare(self, size: int) -> None:
        """Check that the clone has the image's content, and zeros after it."""
        run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", self.images[size], f"/dev/{self.group}/bench-job")

    def clean(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        found = run("lvs", "--noheadings", "-o", "lv_name", self.group).split()
        for name in found:
            if name.startswith("bench-") or (name.startswith("lvp.base.") and self._is_ours(name)):
                subprocess.run(["lvm", "lvremove", "-qqy", f"{self.group}/{name}"], check=False)

    def _is_ours(self, base: str) -> bool:
        return "lvp.job=bench" in run("lvs", "--noheadings", "-o", "lv_tags", f"{self.group}/{base}")

    def _show(self) -> None:
        small, large = self.sizes
        median = {key: statistics.median(times) for key, times in self.times.items()}
        print(f"\n{self.runs} runs, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors; medians in seconds")
        print(f"| | {small} MiB | {large} MiB |\n| --- | --- | --- |")
        for what, label in ((COPY, "lvcreate and qemu-img convert"), (JOB, "a clone job"), (BARE, "its bare commands")):
            print(f"| {label} | {median[what, small]:.2f} | {median[what, large]:.2f} |")
        print(f"LVM calls of a clone job: {self.calls}")
        for label, ratio, aim in (
            (f"the copy to the clone job, {large} MiB", median[COPY, large] / median[JOB, large], "30 or more"),
            ("the clone job to its bare commands", median[JOB, large] / median[BARE, large], "at most 2"),
            (f"the clone job of {large} MiB to {small} MiB", median[JOB, large] / median[JOB, small], "under 1.2"),
        ):
            print(f"{label}: {ratio:.2f} (target: {aim})")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the folder over HTTP; yield the url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """A request handler without a log."""

    def log_message(self, *_args: object) -> None:
        pass


def make_image(image: Path, size: int, *, compressed: bool) -> None:
    """Create a qcow2 image with ``size`` MiB of data."""
    raw = image.with_suffix(".disk")
    with raw.open("wb") as disk:
        while (missing := size * MIB - disk.tell()) > 0:
            with subprocess.Popen(
                ["tar", "-cf", "-", "/usr"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as tar:
                while missing and (piece := tar.stdout.read(min(MIB, missing))):
                    missing -= disk.write(piece)
                tar.kill()
    run("qemu-img", "convert", "-W", "-f", "raw", "-O", "qcow2", *(["-c"] if compressed else []), raw, image)
    raw.unlink()


def volume_size(size: int) -> int:
    """Return the bytes of a volume for an image of ``size`` MiB: larger, so that the clone must be extended."""
    return size * MIB + GIB


def digest(size: int) -> str:
    return f"sha256:{hashlib.sha256(str(size).encode()).hexdigest()}"


def lvm(*words: str) -> None:
    run("lvm", words[0], "--yes", "--quiet", *words[1:])


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout


def say(words: str) -> None:
    print(f"- {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
