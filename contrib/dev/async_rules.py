#!/usr/bin/env python3
"""Runs flake8-async, which takes 24 s for all files, on the files whose content it has not passed yet.

    async_rules.py RULES PATH...    RULES: for example ASYNC101,ASYNC103; PATH: a folder of Python files

The digests of files that passed are kept outside the checkout, so that a fresh clone checks only what is new.
"""

import hashlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

KEPT = 20_000  # digests; the oldest are dropped


def main() -> int:
    """Check the files and return flake8-async's status."""
    rules, *folders = sys.argv[1:]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "libvirt-volume-provisioner"
    passed = cache / "async-rules"
    known = passed.read_text().split() if passed.is_file() else []
    salt = f"{rules} {version('flake8-async')} {sys.version_info[:2]}".encode()
    files = {path: _digest(salt, path) for folder in folders for path in sorted(Path(folder).rglob("*.py"))}
    new = [path for path, digest in files.items() if digest not in set(known)]
    if not new:
        return 0
    tool = Path(sys.executable).with_name("flake8-async")
    status = subprocess.run([tool, "--enable", rules, *new], check=False).returncode
    if status == 0:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = passed.with_name(f"{passed.name}.{os.getpid()}")
        temporary.write_text("\n".join([*known, *(files[path] for path in new)][-KEPT:]))
        temporary.replace(passed)
    return status


def _digest(salt: bytes, path: Path) -> str:
    """Return a digest of what the result depends on."""
    return hashlib.sha256(salt + str(path).encode() + b"\0" + path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
