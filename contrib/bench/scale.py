"""Measures the daemon with many cached images, queued jobs and volumes: start, lists, submits, recovery, memory.

    python contrib/bench/scale.py [--images 10000] [--jobs 1000] [--volumes 500] [--tree OLD_CHECKOUT --tree .]

Starts the real daemon of each source tree with a tenth of each number, then with all of it, and sends requests over
HTTP on loopback. The jobs wait for a server that does not answer. "growth" is the ratio of both; ten is linear.
Prints a table in Markdown: medians and 99th percentiles.
"""

from __future__ import annotations

import argparse
import hashlib
import socket
import sqlite3
import tempfile
import time
from pathlib import Path

from history import Client, Daemon, percentiles
from series import machine

GIB = 1024**3
CONFIG = """
state_directory = "{folder}/state"
server = {{ bind = ["127.0.0.1:0"] }}
auth = {{ client_token = "{folder}/token" }}
jobs = {{ max_queued = 100000 }}
log = {{ format = "json" }}
cache = {{ directory = "{folder}/cache", require_checksum = false }}
sources.http = {{ plugin = "http", urls = ["http://127.0.0.1:{silent}/"] }}
targets.files = {{ plugin = "file", directory = "{folder}/volumes", make_directory = true, overcommit = true }}
"""


class Scaled(Daemon):
    """A daemon whose folder was filled before."""

    def __init__(self, tree: Path, folder: Path, silent: int) -> None:
        self.folder, self.tree = folder, tree
        (folder / "config.toml").write_text(CONFIG.format(folder=folder, silent=silent))
        self.image = f"http://127.0.0.1:{silent}/disk.qcow2"


def fill_cache(directory: Path, count: int) -> None:
    """Create ``count`` cached images of one byte each."""
    import msgspec

    from provisioner.cache.entry import Entry
    from provisioner.cache.index import Index

    directory.mkdir()
    Index(directory).close()
    rows, urls = [], []
    for number in range(count):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        path = directory / f"image-{digest[:12]}.raw"
        path.write_bytes(b"\0")
        status, url = path.stat(), f"https://images.example.com/{number}/image.raw"
        entry = Entry(
            sha256=digest, sha512=None, file_name=path.name, size=1, mtime_ns=status.st_mtime_ns, format="raw",
            virtual_size=1, compression=None, url=url, added_at=time.time(), last_used_at=time.time() - number,
        )  # fmt: skip
        rows.append((digest, msgspec.json.encode(entry).decode()))
        urls.append((url, '"1"', digest))
    with sqlite3.connect(directory / ".lvp" / "index.sqlite") as db:
        db.executemany("INSERT INTO entries VALUES (?, ?)", rows)
        db.executemany("INSERT INTO urls VALUES (?, ?, ?)", urls)
    db.close()


def fill_volumes(folder: Path, count: int) -> None:
    """Create ``count`` volumes of the target in ``folder``."""
    import trio

    from provisioner import registry
    from provisioner.config import load
    from provisioner.contracts import Provenance, StageRequest

    async def run() -> None:
        back_ends = registry.load().build(load(folder / "config.toml"))
        target = back_ends.target("files")
        await target.recover(frozenset())
        for number in range(count):
            provenance = Provenance("bench", "http://127.0.0.1/", None, time.time())
            async with target.stage(StageRequest(f"volume-{number}", GIB, provenance), verified=True) as staged:
                await staged.commit(None)
        await back_ends.aclose()

    trio.run(run)


def lists(client: Client, requests: int) -> dict[str, list[float]]:
    """Return the seconds of each kind of list."""
    paths = {
        "list: jobs": "jobs",
        "list: pending jobs, last page": "jobs?status=pending&offset={pending}",
        "list: cached images": "cache/images",
        "list: cached images, last page": "cache/images?offset={images}",
        "list: volumes": "volumes",
        "list: volumes, last page": "volumes?offset={volumes}",
        "targets": "targets",
        "readyz": "../../readyz",
    }
    counts = {}
    for name, path in (("pending", "jobs?status=pending"), ("images", "cache/images"), ("volumes", "volumes")):
        client.ask("GET", f"/api/v1/{path}")
        counts[name] = max(0, client.answer.get("count", 0) - 100)
    took = {}
    for name, path in paths.items():
        url = "/readyz" if name == "readyz" else f"/api/v1/{path.format(**counts)}"
        took[name] = [client.ask("GET", url, allowed=(200, 503)) for _ in range(requests)]
    return took


def measure(tree: Path, folder: Path, given: argparse.Namespace, share: float, silent: int) -> dict[str, list[float]]:
    """Return the seconds of everything, and the memory in MiB or KiB, by name."""
    images, jobs, volumes = (int(number * share) for number in (given.images, given.jobs, given.volumes))
    (folder / "state").mkdir(parents=True, mode=0o700)
    figures: dict[str, list[float]] = {}
    daemon = Scaled(tree, folder, silent)
    fill_cache(folder / "cache", images)
    with daemon:  # makes the folders
        pass
    fill_volumes(folder, volumes)
    with daemon:
        figures["start: until ready"] = [daemon.seconds]
        figures["start: processor"] = [daemon.processor]
        client = daemon.client()
        before = daemon.resident_kib
        figures["submit"] = [client.submit() for _ in range(jobs)]
        figures["submit: the last tenth"] = figures["submit"][-max(10, jobs // 10) :]
        figures["memory of a queued job, KiB"] = [(daemon.resident_kib - before) / jobs]
        figures |= lists(client, given.requests)
        figures["resident, MiB"] = [daemon.resident]
        client.ask("GET", "/api/v1/jobs?status=pending&limit=1")
        pending = client.answer["jobs"][0]["job_id"]
        figures["cancel of a queued job"] = [client.ask("POST", f"/api/v1/jobs/{pending}/cancel")]
    with daemon:  # was killed
        figures["start after a kill: until ready"] = [daemon.seconds]
        figures["start after a kill: processor"] = [daemon.processor]
        client = daemon.client()
        figures["list: pending jobs after it"] = [client.list("status=pending") for _ in range(10)]
    return figures


def cell(name: str, values: list[float]) -> str:
    if "memory" in name or "resident" in name:
        return f"{values[0]:.0f}"
    if name.startswith("start"):
        return f"{values[0]:.2f} s"
    return percentiles(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--volumes", type=int, default=500)
    parser.add_argument("--tree", type=Path, action="append", help="a source tree; repeatable (default: this one)")
    parser.add_argument("--requests", type=int, default=100, help="requests of each kind")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    given = parser.parse_args()
    trees = [tree.resolve() for tree in given.tree or [Path(__file__).parents[2]]]
    columns = {}
    for tree in trees:
        for share in (0.1, 1.0):
            with (
                socket.create_server(("127.0.0.1", 0)) as silent,
                tempfile.TemporaryDirectory(dir=given.folder) as made,
            ):
                port = silent.getsockname()[1]
                columns[tree, share] = measure(tree, Path(made) / "run", given, share, port)
    print(f"{given.images} images, {given.jobs} jobs, {given.volumes} volumes; {machine()}; median, 99th percentile\n")
    print("| | " + " | ".join(f"{tree.name}: a tenth | all | growth" for tree in trees) + " |")
    print("| --- |" + " --- | --- | --- |" * len(trees))
    for name in columns[trees[0], 1.0]:
        cells = []
        for tree in trees:
            small, large = (columns[tree, share][name] for share in (0.1, 1.0))
            growth = sorted(large)[len(large) // 2] / max(sorted(small)[len(small) // 2], 1e-9)
            cells.append(f"{cell(name, small)} | {cell(name, large)} | {growth:.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
