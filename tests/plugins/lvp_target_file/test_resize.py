# ruff: noqa: ASYNC221, ASYNC240 - small files of a test
"""Growing files: space, allocation, failures at each step, foreign and open files."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from lvp_target_file import FileSettings, FileTarget
from lvp_target_file.folder import Folder
from provisioner.contracts import GIB, MIB, BackEndContext, Capacity
from provisioner.contracts.errors import NoSpaceError, NotFoundError, TargetUnavailableError, VolumeExistsError
from provisioner.contracts.testing import a_request

SIZE = 8 * MIB
# The functions by which a resize changes the disk.
ACTS = ("ftruncate", "posix_fallocate", "fsync")


def make_target(folder, **options):
    return FileTarget(FileSettings(str(folder), **options), BackEndContext("images", folder / ".lvp"))


async def provision(folder):
    target = make_target(folder)
    async with target.stage(a_request("web01", SIZE), verified=True) as staged:
        Path(staged.device.path).write_bytes(b"data".ljust(SIZE, b"\0"))
        return await staged.commit(None)


def blocks(volume):
    return Path(volume.path).stat().st_blocks * 512


async def test_new_part_is_a_hole(tmp_path):
    volume = await provision(tmp_path)
    used = blocks(volume)
    grown = await make_target(tmp_path).resize("web01", 2 * SIZE)
    assert blocks(grown) == used
    assert Path(grown.path).read_bytes() == b"data".ljust(2 * SIZE, b"\0")


async def test_new_part_is_preallocated(tmp_path):
    volume = await provision(tmp_path)
    used = blocks(volume)
    assert blocks(await make_target(tmp_path, preallocate=True).resize("web01", 2 * SIZE)) >= used + SIZE


@pytest.mark.parametrize("options", [{}, {"overcommit": True}, {"overcommit": True, "preallocate": True}], ids=str)
async def test_resize_without_space(tmp_path, monkeypatch, options):
    """With overcommit the space is not needed yet, unless it is allocated at once."""
    volume = await provision(tmp_path)
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda _: Capacity(GIB, MIB))
    target = make_target(tmp_path, **options)
    if options == {"overcommit": True}:
        assert (await target.resize("web01", 2 * SIZE)).size_bytes == 2 * SIZE
    else:
        with pytest.raises(NoSpaceError, match=r"needs 0.01 GiB more, but .* has 0.00 GiB free"):
            await target.resize("web01", 2 * SIZE)
        assert await target.find("web01") == volume


async def test_foreign_file(tmp_path):
    (tmp_path / "web01.raw").write_bytes(b"theirs")
    with pytest.raises(NotFoundError):
        await make_target(tmp_path).resize("web01", SIZE)
    assert (tmp_path / "web01.raw").read_bytes() == b"theirs"


async def test_resized_meanwhile(tmp_path, monkeypatch):
    """Another program grows the file further: a truncation to the requested size would lose its end."""
    volume = await provision(tmp_path)
    target, capacity = make_target(tmp_path), Folder.capacity

    def grow_first(folder):
        os.truncate(volume.path, 4 * SIZE)
        return capacity(folder)

    monkeypatch.setattr(Folder, "capacity", grow_first)
    with pytest.raises(VolumeExistsError, match="was resized by another program"):
        await target.resize("web01", 2 * SIZE)
    assert Path(volume.path).stat().st_size == 4 * SIZE


@pytest.mark.parametrize("act", ACTS)
async def test_resize_step_fails(tmp_path, monkeypatch, act):
    volume = await provision(tmp_path)
    used, done = blocks(volume), getattr(os, act)
    target = make_target(tmp_path, preallocate=True)
    await target.recover(frozenset())  # takes the folder's lock, which writes too

    def fail_once(*args):
        monkeypatch.setattr(os, act, done)
        raise OSError(errno.ENOSPC if act == "posix_fallocate" else errno.EIO, "made up")

    monkeypatch.setattr(os, act, fail_once)
    with pytest.raises(NoSpaceError if act == "posix_fallocate" else TargetUnavailableError):
        await target.resize("web01", 2 * SIZE)
    assert await target.find("web01") == volume
    assert blocks(volume) == used


async def test_cancel_during_allocation(tmp_path, monkeypatch):
    volume = await provision(tmp_path)
    scope, allocate = trio.CancelScope(), os.posix_fallocate

    def cancel_in_the_first(*args):
        trio.from_thread.run_sync(scope.cancel)
        allocate(*args)

    monkeypatch.setattr(os, "posix_fallocate", cancel_in_the_first)
    monkeypatch.setattr("lvp_target_file.resize._STEP", MIB)
    target = make_target(tmp_path, preallocate=True)
    with scope:
        await target.resize("web01", 2 * SIZE)
    assert scope.cancelled_caught
    assert await target.find("web01") == volume


@pytest.mark.parametrize("step", range(len(ACTS)))
async def test_killed_at_any_step(tmp_path, step):
    """The volume has its old or its new size, its content is whole, and a repeated request completes it."""
    volume = await provision(tmp_path)
    child = subprocess.run([sys.executable, __file__, str(tmp_path), str(step)], check=False)
    assert child.returncode == -9
    target = make_target(tmp_path)
    assert list(await target.recover(frozenset())) == []
    found = await target.find("web01")
    assert found is not None
    assert found.size_bytes == (SIZE if step == 0 else 2 * SIZE)
    assert found.provenance == volume.provenance
    assert (await target.resize("web01", 2 * SIZE)).size_bytes == 2 * SIZE
    assert Path(volume.path).read_bytes() == b"data".ljust(2 * SIZE, b"\0")


def killed(folder, step):
    """Run a resize that is killed right before one of its changes."""

    async def run():
        target = make_target(folder, preallocate=True)
        await target.recover(frozenset())
        setattr(os, ACTS[step], lambda *_: os.kill(os.getpid(), 9))
        await target.resize("web01", 2 * SIZE)

    trio.run(run)


if __name__ == "__main__":
    killed(Path(sys.argv[1]), int(sys.argv[2]))
