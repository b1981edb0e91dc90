"""Building MinIO and the Versity gateway with Go, once per machine, under a lock.

Owns the folder of what was built: $XDG_CACHE_HOME/libvirt-volume-provisioner/PROGRAM/VERSION+GO/.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

# Pinned. MinIO has no module versions; this commit is its release of 2025-09-07.
MINIO = ("github.com/minio/minio", "v0.0.0-20250907161309-07c3a429bfed")
VERSITY = ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0")


def built(package: str, version: str) -> Path:
    """The path of ``package`` at ``version``, built with this machine's Go where it is not there yet.

    The first build takes minutes (MinIO: 6 minutes of CPU time); others wait for it at the lock.
    """
    name = package.rsplit("/", 1)[-1]
    folder = _cache() / name / f"{version}+{_go_version()}"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            unfinished = folder / "unfinished"
            environment = {**os.environ, "GOBIN": str(unfinished), "GOFLAGS": "-trimpath", "CGO_ENABLED": "0"}
            subprocess.run(
                ["go", "install", "-ldflags", "-s -w", f"{package}@{version}"], env=environment, cwd="/", check=True
            )
            (unfinished / name).rename(program)
    return program


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "libvirt-volume-provisioner")


def _go_version() -> str:
    return subprocess.run(["go", "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    for pinned in (MINIO, VERSITY):
        print(built(*pinned))
