#!/usr/bin/env python3
"""Runs make targets in a minimal Debian, in its own namespaces, on a fresh clone of this checkout.

    python3 tests/clean/run.py --release trixie demo test
    python3 tests/clean/run.py --without lvm2 test-parts     with a package left out of contrib/dev/packages

Needs root. The clone contains only what is committed.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.clean import trees
from tests.clean.session import Session, remove_leftovers
from tests.guest.harness.packages import install_missing

CHECKOUT = Path(__file__).resolve().parents[2]
# The clone's path in the tree, and the caches that are kept between runs; each verifies its content.
HERE = "/root/libvirt-volume-provisioner"
CACHES = {
    "/root/.cache/libvirt-volume-provisioner": "project", "/root/.cache/uv": "uv", "/root/.cache/pip": "pip",
    "/root/go/pkg": "go-pkg", "/root/.cache/go-build": "go-build", "/root/.cache/mypy": "mypy",
}  # fmt: skip
# make exports it to mypy, whose default is a folder in the clone.
MYPY = "MYPY_CACHE_DIR=/root/.cache/mypy"


def main() -> int:
    """Run the targets; return the first status that is not 0."""
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    if os.geteuid():
        print("clean: mounts and namespaces need root; run this as root", file=sys.stderr)
        return 1
    install_missing("clean")
    remove_leftovers()
    caches = {there: trees.root() / "inside" / name for there, name in CACHES.items()}
    for folder in caches.values():
        folder.mkdir(parents=True, exist_ok=True)
    with Session([]) as keeper:
        clone = keeper.scratch / "clone"
        fresh_clone(clone, options.without)
        for target in options.targets:
            if status := make(options, target, clone, {**caches, HERE: clone}):
                return status
    return 0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="", help="Debian's code name (default: this machine's)")
    parser.add_argument("--without", action="append", default=[], metavar="PACKAGE", help="leave it out of the setup")
    parser.add_argument("--jobs", default="4", help="suites at a time (default: 4)")
    parser.add_argument("--tests", default="", help="the tests for `make test-some`")
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="make targets, for example: demo test")
    return parser.parse_args()


def fresh_clone(clone: Path, without: list[str]) -> None:
    """Clone the checkout; remove the packages ``without`` from the clone's list."""
    status = subprocess.run(["git", "status", "--porcelain"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    if changed := len(status.stdout.splitlines()):
        say(f"{changed} changed files are not committed and are ignored")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", CHECKOUT, clone], check=True)
    listed = clone / "contrib/dev/packages"
    for package in without:
        text, count = re.subn(rf"^\w+ +{re.escape(package)}\b(?!-).*\n", "", listed.read_text(), flags=re.MULTILINE)
        if not count:
            raise SystemExit(f"clean: contrib/dev/packages does not list {package}")
        say(f"leaving out {package}")
        listed.write_text(text)


def make(options: argparse.Namespace, target: str, clone: Path, binds: dict[str, Path]) -> int:
    """Run one make target in its tree; return the status."""
    stack = trees.layers(options.release, "demo" if target == "demo" else "test", clone)
    say(f"make {target} on {stack[0].parent.name.partition('-')[0]}")
    started = time.monotonic()
    with Session(stack, binds=binds) as session:
        status = session.run(["make", target, f"TESTS={options.tests}", f"JOBS={options.jobs}", MYPY], HERE)
    say(f"make {target}: status {status} after {time.monotonic() - started:.0f} s")
    return status


def say(text: str) -> None:
    """Print a line with this program's prefix."""
    print(f"clean: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
