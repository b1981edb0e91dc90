"""Targets, bases and clones on a file system with reflinks."""

import os
import random
from pathlib import Path

from lvp_target_file import FileSettings, make_file_target
from lvp_target_file.reflink import own_bytes
from provisioner.contracts import MIB, BackEndContext, Provenance, StageRequest

SIZE = 8 * MIB
DATA = random.Random(1).randbytes(MIB)


def make_target(folder, **settings):
    return make_file_target(FileSettings(str(folder), **settings), BackEndContext("images", folder / ".lvp/state"))


def digest(number=1):
    return f"sha256:{number:064x}"


def request(name="web01", size=SIZE, job="job-1", number=None, **more):
    image_digest = None if number is None else digest(number)
    provenance = Provenance(job, "https://images.example.com/disk.raw", image_digest, 1_700_000_000.0)
    return StageRequest(name, size, provenance, **more)


def write(path, data, at=0):
    """Write and sync ``data``."""
    fd = os.open(path, os.O_RDWR)
    try:
        while data:
            done = os.pwrite(fd, data, at)
            at, data = at + done, data[done:]
        os.fsync(fd)
    finally:
        os.close(fd)


async def make_base(target, number=1, data=DATA, size=None, job="job-base"):
    wanted = request("raw", size or len(data), job, number, data_bytes=len(data))
    async with target.stage_base(wanted) as staged:
        write(staged.device.path, data)
        await staged.commit(digest(number))
    return await target.base(digest(number), "raw")


async def clone(target, base, name="web01", job="job-1", size=SIZE):
    async with target.stage_clone(base, request(name, size, job)) as staged:
        return await staged.commit(base.digest)


def bases(folder):
    """Return the names of the base files."""
    return sorted(path.name for path in (Path(folder) / ".lvp/base").glob("*"))


def staged_files(folder):
    return sorted(path.name for path in (Path(folder) / ".lvp/stage").glob("*"))


def taken(folder):
    """Return the bytes that bases and volumes do not share, and that each takes alone."""
    return {path.name: own_bytes(path) for path in [*folder.glob("*.raw"), *folder.glob(".lvp/base/*")]}
