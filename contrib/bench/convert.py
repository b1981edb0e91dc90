"""Compares the native converter, with and without the checksums of the cached image, with qemu-img, dd and nbdcopy.

    python contrib/bench/convert.py --size 1024 --runs 5 --folder /var/tmp [--kind zlib ...] [--target loop ...]
    python contrib/bench/convert.py --device /dev/vg0/scratch ...        onto your own volume, which is OVERWRITTEN

Runs are interleaved, each onto a fresh target that reads as zero; the time includes an fsync of the target. Every
result is compared with the source once. Devices need root. Quote ratios rather than seconds; below 1 is faster.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from figures import record
from series import CELLS, MIB, Series

from lvp_convert_native import NativeConverter, NativeSettings
from provisioner.contracts import BackEndContext, Device
from provisioner.contracts.testing import FileView
from provisioner.download.chunk_sums import ChunkChecker, ChunkSummer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STRETCH = 16 * MIB
KINDS = {
    "raw-full": ("raw", None),
    "raw-half": ("raw", None),
    "plain": ("qcow2", []),
    "zlib": ("qcow2", ["-c"]),
    "zstd": ("qcow2", ["-c", "-o", "compression_type=zstd"]),
}
QEMU_BEST = ["-n", "-W", "-t", "none", "--target-is-zero"]


def run(*command: str | Path) -> str:
    return subprocess.run(
        [str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout


def make_disks(folder: Path, size: int) -> dict[str, Path]:
    """Create a disk full of this machine's programs and libraries, and one in which every second stretch is a hole."""
    full, half = folder / "full.raw", folder / "half.raw"
    with subprocess.Popen(["tar", "-cf", "-", "/usr"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar:
        with full.open("wb") as whole, half.open("wb") as sparse:
            for at in range(0, size, STRETCH):
                data = tar.stdout.read(min(STRETCH, size - at))
                if len(data) < min(STRETCH, size - at):
                    raise SystemExit(f"/usr is too small for a disk of {size // MIB} MiB")
                whole.write(data)
                if at // STRETCH % 2 == 0:
                    sparse.seek(at)
                    sparse.write(data)
            sparse.truncate(size)
        tar.kill()
    return {"raw-full": full, "raw-half": half}


def make_images(folder: Path, size: int, kinds: list[str]) -> dict[str, Path]:
    images = make_disks(folder, size)
    for kind in kinds:
        if kind not in images:
            images[kind] = folder / f"{kind}.qcow2"
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *KINDS[kind][1], images["raw-half"], images[kind])
    return images


@contextmanager
def loop_target(folder: Path, size: int) -> Iterator[Callable[[], Path]]:
    backing = folder / "backing"
    backing.write_bytes(b"")
    os.truncate(backing, size)
    device = Path(run("losetup", "--find", "--show", "--direct-io=on", backing).strip())

    def fresh() -> Path:
        run("blkdiscard", "-z", "-f", device)
        run("fallocate", "--punch-hole", "--offset", "0", "--length", str(size), backing)
        return device

    try:
        yield fresh
    finally:
        run("losetup", "--detach", device)


@contextmanager
def device_target(device: Path) -> Iterator[Callable[[], Path]]:
    # Unmapped chunks of a thin volume read as zero; writing zeros would allocate them.
    thin = " thin " in run("dmsetup", "table", device)

    def fresh() -> Path:
        run("blkdiscard", "-f", *([] if thin else ["-z"]), device)
        return device

    yield fresh


@contextmanager
def file_target(folder: Path, size: int) -> Iterator[Callable[[], Path]]:
    def fresh() -> Path:
        target = folder / "target.raw"
        target.unlink(missing_ok=True)
        target.touch()
        os.truncate(target, size)
        return target

    yield fresh


class CheckedView(FileView):
    """A view that checks the data against checksums, as the daemon does for a cached image."""

    def __init__(self, path: Path, form: str, size: int, sums: bytes) -> None:
        super().__init__(path, form, size)
        self._sums = sums

    def __enter__(self) -> CheckedView:
        super().__enter__()
        checker = ChunkChecker(self.fd, self.size, self._sums)
        self.check, self.check_zeros, self.check_all = checker.check, checker.check_zeros, checker.check_all
        return self


def sums_of(image: Path) -> bytes:
    summer = ChunkSummer()
    with image.open("rb") as file:
        while data := file.read(STRETCH):
            summer.feed(memoryview(data))
    return summer.finish()


def contenders(kind: str, image: Path, size: int, threads: int) -> dict[str, Callable[[Path], None]]:
    form = KINDS[kind][0]
    convert = ["qemu-img", "convert", "-f", form, "-O", "raw"]

    def ours(target: Path) -> None:
        converter = NativeConverter(NativeSettings(threads=threads), BackEndContext("native", target.parent))
        with CheckedView(image, form, size, sums) as view:
            trio.run(converter.convert, view, Device(str(target), size, reads_zero=True), lambda _: None)

    def unchecked(target: Path) -> None:
        converter = NativeConverter(NativeSettings(threads=threads), BackEndContext("native", target.parent))
        with FileView(image, form, size) as view:
            trio.run(converter.convert, view, Device(str(target), size, reads_zero=True), lambda _: None)

    sums = sums_of(image)
    found: dict[str, Callable[[Path], None]] = {
        "native": ours,
        "native, unchecked": unchecked,
        "qemu-img": lambda target: run(*convert, image, target),
        "qemu-img best -m8": lambda target: run(*convert, *QEMU_BEST, "-m", "8", image, target),
        "qemu-img best -m16": lambda target: run(*convert, *QEMU_BEST, "-m", "16", image, target),
    }
    if form == "raw":
        found["dd"] = lambda target: run(
            "dd", f"if={image}", f"of={target}", "bs=4M", "conv=fdatasync,notrunc", "status=none"
        )
    if shutil.which("nbdcopy"):
        source = [image] if form == "raw" else ["[", "qemu-nbd", "-r", "-f", form, image, "]"]
        found["nbdcopy"] = lambda target: run("nbdcopy", "--flush", "--destination-is-zero", "--", *source, target)
    return found


def flush(target: Path) -> None:
    fd = os.open(target, os.O_WRONLY)
    os.fsync(fd)
    os.close(fd)


def same(target: Path, disk: Path, size: int) -> bool:
    if target.is_block_device():
        return subprocess.run(["cmp", "--quiet", f"--bytes={size}", target, disk], check=False).returncode == 0
    return target.stat().st_size == size and filecmp.cmp(target, disk, shallow=False)


def measure(kind: str, images: dict[str, Path], fresh: Callable[[], Path], size: int, options) -> dict[str, Series]:
    works = contenders(kind, images[kind], size, options.threads)
    works = {name: work for name, work in works.items() if not options.only or name in {"native", *options.only}}
    table = {name: Series() for name in works}
    for turn in range(options.runs + 1):  # the first run warms the page cache and does not count
        for name, work in works.items():
            target = fresh()
            os.sync()
            with table[name].timed(counted=turn > 0):
                work(target)
                flush(target)
            if turn == 0:
                disk = images["raw-full" if kind == "raw-full" else "raw-half"]
                if not same(target, disk, size):
                    raise SystemExit(f"{name} wrote wrong data from the {kind} image")
    return table


def lines(target: str, kind: str, table: dict[str, Series]) -> Iterator[str]:
    ours = table["native"].median
    for name, series in table.items():
        yield f"| {target} | {kind} | {name} | {ours / series.median:.2f} | {series.cells} |"


LABELS = {
    "raw-full": "raw, full", "raw-half": "raw, half holes", "plain": "qcow2", "zlib": "qcow2, zlib",
    "zstd": "qcow2, zstd",
}  # fmt: skip
COMMAND = "python contrib/bench/convert.py --target loop --keep"


def record_all(tables: dict[str, dict[str, Series]]) -> None:
    """Keep the ratios for the chart. ``tables``: the series by image and contender."""
    best = ("qemu-img best -m8", "qemu-img best -m16")
    values = {}
    for kind, table in tables.items():
        ours = table["native"].median
        values[LABELS[kind]] = [ours / min(table[name].median for name in best), ours / table["qemu-img"].median]
    title = "Converting a cached image: our time, of qemu-img's"
    record("convert", title, "", ["of its best flags", "of its defaults"], values, COMMAND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the disk (default 1024)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=NativeSettings().threads)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--kind", action="append", choices=sorted(KINDS))
    parser.add_argument("--only", action="append", help="contenders, in addition to native (default: all)")
    parser.add_argument("--target", action="append", choices=["file", "loop"])
    parser.add_argument("--device", type=Path, action="append", default=[], help="a volume to overwrite")
    parser.add_argument("--keep", action="store_true", help="keep the figures of the last target and draw the chart")
    options = parser.parse_args()
    tables: dict[str, dict[str, Series]] = {}
    size, kinds = options.size * MIB, options.kind or list(KINDS)
    print(f"| target | image | with | native / this | {CELLS} |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lvp-bench-") as folder:
        images = make_images(Path(folder), size, kinds)
        targets = {
            "loop": partial(loop_target, Path(folder), size),
            "file": partial(file_target, Path(folder), size),
            **{str(device): partial(device_target, device) for device in options.device},
        }
        for target in [*(options.target or ([] if options.device else ["loop", "file"])), *map(str, options.device)]:
            with ExitStack() as stack:
                fresh = stack.enter_context(targets[target]())
                for kind in kinds:
                    tables[kind] = measure(kind, images, fresh, size, options)
                    print(*lines(target, kind, tables[kind]), sep="\n", flush=True)
    if options.keep:
        record_all(tables)


if __name__ == "__main__":
    main()
