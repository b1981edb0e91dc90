"""Builds the servers of the tests with Go (MinIO, Versity, an OCI registry), once per machine, under a lock.

The programs are kept in $XDG_CACHE_HOME/libvirt-volume-provisioner/PROGRAM/VERSION+GO/.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Pinned. MinIO has no module versions; this commit is its release of 2025-09-07.
MINIO = ("github.com/minio/minio", "v0.0.0-20250907161309-07c3a429bfed")
VERSITY = ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0")
REGISTRY = ("github.com/distribution/distribution/v3/cmd/registry", "v3.0.0")


# The newest version that one of their go.mod requires.
OLDEST_GO = (1, 25)
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def built(package: str, version: str) -> Path:
    """Return the path of ``package`` at ``version``; build it if it is missing.

    The first build takes minutes (MinIO: 6 minutes of CPU time); others wait for it at the lock.
    """
    name = package.rsplit("/", 1)[-1]
    tool = go()
    folder = cache() / name / f"{version}+{_go_version(tool)}"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            unfinished = folder / "unfinished"
            environment = {**os.environ, "GOBIN": str(unfinished), "GOFLAGS": "-trimpath", "CGO_ENABLED": "0"}
            subprocess.run(
                [tool, "install", "-ldflags", "-s -w", f"{package}@{version}"], env=environment, cwd="/", check=True
            )
            (unfinished / name).rename(program)
    return program


def cache() -> Path:
    """Return the folder for what is built once per machine."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "libvirt-volume-provisioner")


def go(oldest: tuple[int, int] = OLDEST_GO) -> str:
    """Return this machine's Go if it has at least the version ``oldest``, else the pinned one."""
    found = shutil.which("go")
    numbers = re.match(r"go(\d+)\.(\d+)", _go_version(found)) if found else None
    if found and numbers and (int(numbers[1]), int(numbers[2])) >= oldest:
        return found
    folder = cache() / f"go-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-compile",
                "--require-hashes",
                "--no-deps",
            ]
            subprocess.run([*command, "--upgrade", "--target", str(folder), "-r", str(REQUIREMENTS)], check=True)
            (folder / "whole").touch()
    return str(folder / "go" / "bin" / "go")


def _go_version(go: str) -> str:
    return subprocess.run([go, "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    for pinned in (MINIO, VERSITY, REGISTRY):
        print(built(*pinned))
