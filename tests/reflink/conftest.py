"""New file systems with reflinks, on loop devices. Needs root, xfsprogs and btrfs-progs."""

import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from provisioner.contracts import GIB, MIB

FILE_SYSTEMS = ("xfs", "btrfs")
_MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q"],
    "xfs without reflinks": ["mkfs.xfs", "-q", "-m", "reflink=0"],
}


def run(*command):
    """Run a program that must succeed; return its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


@contextmanager
def mounted(kind, folder, size):
    """Make and mount a file system of ``size`` bytes; yield its folder. ``tmpfs`` is the kind without a disk."""
    image, mount = folder / f"{kind}.disk", folder / kind
    with image.open("wb") as file:
        file.truncate(size)
    mount.mkdir()
    if kind == "tmpfs":
        run("mount", "-t", kind, kind, mount)
    else:
        run(*_MAKE[kind], image)
        run("mount", "-o", "loop,discard", image, mount)
    try:
        yield mount
    finally:
        run("umount", "--lazy", mount)  # a target of a failed test may still hold its lock file
        image.unlink()


@contextmanager
def in_memory():
    """Yield a folder in memory if possible: the tests sync often."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session", params=FILE_SYSTEMS)
def file_system(request):
    """A file system of 1 GiB for all tests of the session."""
    with in_memory() as folder, mounted(request.param, folder, GIB) as mount:
        yield mount


@pytest.fixture
def shared(file_system, tmp_path):
    """An empty folder on a file system with reflinks."""
    folder = file_system / tmp_path.name
    folder.mkdir()
    yield folder
    run("rm", "-rf", folder)


@pytest.fixture(params=FILE_SYSTEMS)
def small(request):
    """A file system of its own that is easily filled."""
    with in_memory() as folder, mounted(request.param, folder, 384 * MIB) as mount:
        yield mount
