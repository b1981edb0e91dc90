"""Builds and caches the trees that a run starts from: the minimal Debian, and layers with the packages of the setup.

Each is kept below `clean/` in the cache, with a key over its inputs. Package versions are not part of the key;
`CLEAN=1` rebuilds everything.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.clean import carried
from tests.clean.session import Session
from tests.guest.harness.cache import cache_directory, entry, key_of
from tests.guest.harness.sources import machine_options, machine_sources

CHECKOUT = Path(__file__).resolve().parents[2]
SETUP = ("contrib/dev/setup", "contrib/dev/packages")
# Debian's installer installs at least priority `important`. Nothing is added for the project.
RECIPE = ("--quiet", "--mode=root", "--variant=important", "--format=directory", "--skip=output/dev")
# Start no services in the tree, because it has no init.
POLICY = "#!/bin/sh\nexit 101\n"
PURPOSES = {"demo": ("demo",), "test": ("demo", "check", "test", "guest")}


def root() -> Path:
    """Return the cache directory of clean runs."""
    return cache_directory("clean")


def layers(release: str, purpose: str, setup: Path) -> list[Path]:
    """Return the directories to stack for ``purpose`` ("demo" or "test"), lowest first; build the missing ones.

    :param setup: the folder whose contrib/dev the run uses
    """
    codename, sources = machine_sources(release)
    stack = [_base(codename, sources)]
    chain = ["demo"] if purpose == "demo" else ["demo", "test"]
    for name in chain:
        stack.append(_layer(f"{codename}-{name}", name, stack, setup))
    return [stack[0] / "tree", *(layer / "upper" for layer in stack[1:])]


def _base(codename: str, sources: str) -> Path:
    options = machine_options()
    settings = [str(inside).encode() + here.read_bytes() for inside, here in sorted(carried.files().items())]

    def build(directory: Path) -> None:
        tree, listed = directory / "tree", directory / "debian.sources"
        listed.write_text(sources)
        command = [
            "mmdebstrap",
            *RECIPE,
            *(f"--aptopt={option}" for option in options),
            codename,
            str(tree),
            str(listed),
        ]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
        carried.install(tree)
        policy = tree / "usr/sbin/policy-rc.d"
        policy.write_text(POLICY)
        policy.chmod(0o755)

    inputs = (codename, sources, *RECIPE, POLICY, *options, *settings)
    return entry(f"{codename}-base", key_of(*inputs), build, root())


def _layer(kind: str, purpose: str, below: list[Path], setup: Path) -> Path:
    texts = [(setup / name).read_bytes() for name in SETUP]
    key = key_of(*(layer.name for layer in below), purpose, *texts)

    def build(directory: Path) -> None:
        (directory / "upper").mkdir()
        lower = [below[0] / "tree", *(layer / "upper" for layer in below[1:])]
        with Session(lower, directory / "upper") as session:
            for name in SETUP:
                (session.temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(setup / name, session.temporary / name)
            script = f"/tmp/contrib/dev/setup packages {' '.join(PURPOSES[purpose])} && apt-get clean"
            status = session.run(["sh", "-ec", script])
        if status:
            raise RuntimeError(f"contrib/dev/setup failed with status {status} on {kind}")

    return entry(kind, key, build, root())
