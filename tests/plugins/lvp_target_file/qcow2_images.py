"""qcow2 volumes and their bases, seen with QEMU's own tools."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import trio

from lvp_target_file import FileSettings, make_file_target
from provisioner.contracts import MIB, BackEndContext, Provenance, StageRequest

SIZE = 8 * MIB
DIGEST = "sha256:" + "ab" * 32
IMAGE = b"image".ljust(MIB, b"i")


def tool(*command):
    """Run a program that must succeed; return its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


def content(path):
    """Return the bytes of the disk in a qcow2 file."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "disk.raw"
        tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
        return raw.read_bytes()


def info(path):
    return json.loads(tool("qemu-img", "info", "--output=json", "-f", "qcow2", path))


def check(path):
    """Check the tables of a qcow2 file: an error or a leaked cluster is a failure."""
    tool("qemu-img", "check", "-f", "qcow2", path)


def write_inside(path, data, at=0):
    """Write to the disk in a qcow2 file, as a guest does."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        tool("qemu-io", "-f", "qcow2", "-c", f"write -s {file.name} {at} {len(data)}", path)


def make_target(folder, state="state", **settings):
    options = {"format": "qcow2", **settings}
    return make_file_target(FileSettings(str(folder), **options), BackEndContext("images", folder / ".lvp" / state))


def request(name="web01", size=SIZE, job="job-1", digest=None, **more):
    return StageRequest(name, size, Provenance(job, "https://images.example.com/disk.raw", digest, 1.7e9), **more)


def write(path, data, at=0):
    """Write and sync ``data`` to a staged file, as a converter does."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, data, at)
    os.fsync(fd)
    os.close(fd)


async def bounded(commit, digest):
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):  # as the core does
        return await commit(digest)


async def provision(target, data, name="web01", job="job-1", size=SIZE):
    """Make a volume that stands alone."""
    async with target.stage(request(name, size, job), verified=True) as staged:
        write(staged.device.path, data)
        return await bounded(staged.commit, DIGEST)


async def make_base(target, data=IMAGE, digest=DIGEST, job="job-base"):
    async with target.stage_base(request("raw", len(data), job, digest, data_bytes=len(data))) as staged:
        write(staged.device.path, data)
        await bounded(staged.commit, digest)
    return await target.base(digest, "raw")


async def clone(target, base, name="web01", job="job-1", size=SIZE):
    async with target.stage_clone(base, request(name, size, job)) as staged:
        return await bounded(staged.commit, base.digest)


def bases(folder):
    return sorted(path.name for path in (folder / ".lvp/backing").glob("*"))


def staged_files(folder):
    return sorted(path.name for path in (folder / ".lvp/stage").glob("*"))
