"""Measures how much of the page cache a provision uses, at its peak and afterwards, with both policies.

    python contrib/bench/page_cache.py [--size 1024] [--folder /var/tmp]

fincore measures the files of the cache and the volumes while a provision runs: first cold, from an nginx on loopback
that is limited to 200 MB/s, then from the cache.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import threading
from pathlib import Path

import structlog
from cold import Ours
from convert import KINDS, make_images
from series import MIB

from tests.servers.nginx import nginx


def resident(ours: Ours) -> int:
    """Return how many MiB of the cache's files and the volumes are in memory."""
    files = [path for folder in ("state", "volumes") for path in (ours.folder / folder).rglob("*") if path.is_file()]
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", *files]
    found = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return sum(map(int, found.stdout.split())) // MIB


def measured(ours: Ours, url: str) -> tuple[int, int]:
    """Run a provision; return the MiB in memory at the peak and afterwards."""
    work = threading.Thread(target=ours.provision, args=(url, "disk"))
    work.start()
    peak = 0
    while work.is_alive():
        peak = max(peak, resident(ours))
        work.join(0.05)
    return peak, resident(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the disk (default 1024)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    print("| image | page_cache | provision | peak MiB | afterwards MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="lvp-bench-") as name:
        folder = Path(name)
        (folder / "www").mkdir()
        images = make_images(folder / "www", options.size * MIB, ["raw-full", "zlib"])
        with nginx(folder / "www", folder / "nginx") as web:
            for kind in ("raw-full", "zlib"):
                for policy in ("keep", "give-back"):
                    ours = Ours(folder, web.url, KINDS[kind][0], page_cache=policy)
                    url = f"{web.url}/{images[kind].name}?rate={200 * 10**6}"
                    for what, fresh in (("cold", True), ("from the cache", False)):
                        ours.forget(images=fresh)
                        peak, rest = measured(ours, url)
                        print(f"| {kind} | {policy} | {what} | {peak} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
