"""The cache of built images outside the checkout: keys, one builder at a time, and pruning.

An entry is complete or absent, because it is built under a temporary name and renamed.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Keep old entries this long after their last use, so that branches with different recipes can alternate.
KEEP = 3 * 24 * 3600  # seconds


def cache_directory(name: str = "guest") -> Path:
    """Return the directory of all entries, under the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "libvirt-volume-provisioner" / name


def key_of(*inputs: bytes | str) -> str:
    """Return a short digest over all inputs, in order."""
    digest = hashlib.sha256()
    for item in inputs:
        data = item.encode() if isinstance(item, str) else item
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def entry(kind: str, key: str, build: Callable[[Path], None], root: Path | None = None) -> Path:
    """Return the directory KIND-KEY below ``root``, built with `build(directory)` if it is missing."""
    root = root or cache_directory()
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"{kind}-{key}"
    with _locked(root / f"{kind}.lock"):
        if not final.is_dir():
            _build(final, build)
        os.utime(final)
        _prune(root, kind, final)
    return final


def _build(final: Path, build: Callable[[Path], None]) -> None:
    started = time.monotonic()
    print(f"{final.parent.name}: building {final.name}", file=sys.stderr, flush=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        build(temporary)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    print(f"{final.parent.name}: built {final.name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the kernel releases it when the process ends, even if it is killed."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prune(root: Path, kind: str, current: Path) -> None:
    """Remove unused entries of this kind and leftovers of killed builds. The caller holds the lock."""
    now = time.time()
    for leftover in root.glob(f".{kind}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in root.glob(f"{kind}-*"):
        if old != current and now - old.stat().st_mtime > KEEP:
            shutil.rmtree(old, ignore_errors=True)
