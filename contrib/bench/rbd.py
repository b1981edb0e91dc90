"""Compares cloning a volume in Ceph with a full copy and with the bare `rbd` calls, for images of two sizes.

    python contrib/bench/rbd.py [--sizes 256 2048] [--runs 5]

Starts a cluster with one OSD in memory on loopback, as `make test-rbd` does, which also installs Ceph. One run
interleaves: what the target does for a clone (find the base, plan, clone, commit); `rbd clone`, `rbd resize` and
`rbd rename`; `rbd cp` of the whole base. The images are full of random data, so the cluster holds both of them and a
copy. Removes everything at its end. Quote ratios rather than seconds: copies within one machine's memory are the
fastest there are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[2]))

from lvp_target_rbd import RbdCloneTarget, RbdSettings
from provisioner.contracts import BackEndContext, Base, Duration, Provenance, SecretRef, StageRequest, pwrite_all
from tests.ceph.cluster import POOL, Cluster, cluster

MIB, GIB = 1024**2, 1024**3
CLONE, BARE, COPY = "clone", "bare calls", "full copy"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[256, 2048], help="MiB of data in the two images")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    room = 3 * sum(options.sizes) * MIB + GIB
    with cluster(Path(tempfile.mkdtemp(prefix="lvp-ceph-")), size=room) as running:
        trio.run(measure, running, options.sizes, options.runs)
    return 0


async def measure(running: Cluster, sizes: list[int], runs: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lvp-bench-"))
    settings = RbdSettings(
        pool=POOL,
        conf=str(running.conf),
        user="admin",
        keyring=SecretRef(f"file:{running.admin_keyring}"),
        op_timeout=Duration(120),
    )
    target = RbdCloneTarget(settings, BackEndContext("ceph", folder))
    taken: dict[tuple[str, int], list[float]] = defaultdict(list)
    bases = {size: await import_base(target, size) for size in sizes}
    for number in range(runs):
        for size in sizes:
            name = f"v{number}-{size}"
            works = {
                CLONE: partial(clone, target, bases[size], name, size),
                BARE: partial(bare, running, bases[size], f"{name}-bare", size),
                COPY: partial(copy, running, bases[size], f"{name}-copy"),
            }
            for what, work in works.items():
                began = time.perf_counter()
                await work()
                taken[what, size].append(time.perf_counter() - began)
            await target.remove(name)
            for other in (f"{name}-bare", f"{name}-copy"):
                running.rbd("rm", "--no-progress", f"{POOL}/{other}")
    small, large = sizes
    print(f"{'median of ' + str(runs):14} {small:>7} MiB {large:>7} MiB   large/small")
    for what in (CLONE, BARE, COPY):
        one, two = (statistics.median(taken[what, size]) for size in sizes)
        print(f"{what:14} {one:9.3f} s {two:9.3f} s {two / one:13.2f}")
    for size in sizes:
        clone_time = statistics.median(taken[CLONE, size])
        for what in (BARE, COPY):
            ratio = clone_time / statistics.median(taken[what, size])
            print(f"a clone of {size} MiB takes {ratio:.3f} of: {what}")


async def import_base(target: RbdCloneTarget, size: int) -> Base:
    digest, began = f"sha256:{size:064x}", time.perf_counter()
    request = StageRequest("raw", size * MIB, Provenance("bench", "bench:", digest, 0.0))
    async with target.stage_base(request) as staged:
        await trio.to_thread.run_sync(fill, staged.device.path, size)
        await staged.commit(digest)
    print(f"import of {size} MiB: {time.perf_counter() - began:.1f} s", flush=True)
    base = await target.base(digest, "raw")
    assert base is not None
    return base


def fill(path: str, size: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        for at in range(0, size, 4):
            pwrite_all(fd, os.urandom(4 * MIB), at * MIB)
        os.fsync(fd)
    finally:
        os.close(fd)


async def clone(target: RbdCloneTarget, base: Base, name: str, size: int) -> None:
    found = await target.base(base.digest, "raw")
    assert found is not None
    request = StageRequest(name, size * MIB + GIB, Provenance("bench", "bench:", base.digest, 0.0))
    async with target.stage_clone(found, request) as staged:
        await staged.commit(base.digest)


async def bare(running: Cluster, base: Base, name: str, size: int) -> None:
    await rbd(running, "clone", "--rbd-default-clone-format", "2", f"{POOL}/{base.name}@image", f"{POOL}/{name}-new")
    await rbd(running, "resize", "--no-progress", f"{POOL}/{name}-new", "--size", f"{size + 1024}M")
    await rbd(running, "rename", f"{POOL}/{name}-new", f"{POOL}/{name}")


async def copy(running: Cluster, base: Base, name: str) -> None:
    await rbd(running, "cp", "--no-progress", f"{POOL}/{base.name}@image", f"{POOL}/{name}")


async def rbd(running: Cluster, *words: str) -> None:
    admin = ("--conf", str(running.conf), "--keyring", str(running.admin_keyring), "--id", "admin")
    await trio.run_process(["rbd", *admin, *words], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
