# ruff: noqa: ASYNC221, ASYNC240 - small files of a test
"""Each step of a job fails, is cancelled, or is the last before a power failure."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import lvp_target_file.target
from lvp_target_file import FileSettings, FileTarget
from provisioner.contracts import BackEndContext
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.testing import a_request
from tests.contents import first_bytes

# The functions by which the modules under test change the disk. A step is one call of one of them.
ACTS = ("open", "ftruncate", "setxattr", "fsync", "fchown", "link", "rename", "unlink")
OLD, NEW = b"old", b"new"


def make_target(folder):
    return FileTarget(FileSettings(str(folder)), BackEndContext("images", folder / ".lvp"))


async def provision(target, data, job_id):
    async with target.stage(a_request(job_id=job_id), verified=True) as staged:
        fd = os.open(staged.device.path, os.O_RDWR)
        os.pwrite(fd, data, 0)
        os.close(fd)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):  # as the core does
            return await staged.commit(None)


def count_down(steps, end, acts=ACTS):
    """Wrap the acts so that ``end`` is called only at step number ``steps``, counted from 0."""
    left = [steps]

    def wrap(act):
        def acted(*args, **kwargs):
            left[0] -= 1
            if left[0] == -1:
                end()
            return act(*args, **kwargs)

        return acted

    for name in acts:
        setattr(os, name, wrap(getattr(os, name)))


@pytest.fixture
def restored_os(monkeypatch):
    """Restore the functions of ``os`` after the test."""
    for name in ACTS:
        monkeypatch.setattr(os, name, getattr(os, name))


def staged_files(folder):
    return list((folder / ".lvp/stage").iterdir()) if (folder / ".lvp/stage").exists() else []


async def assert_whole(folder, replaced):
    """Assert that the folder is in the old state or the new one, with nothing else; return the content."""
    target = make_target(folder)
    await target.recover(frozenset())
    assert staged_files(folder) == []
    volume = await target.find("web01")
    if volume is None:
        assert not replaced
        return None
    assert volume.provenance is not None
    content = first_bytes(Path(volume.path), 3)
    assert (content, volume.provenance.job_id) in {(OLD, "job-old"), (NEW, "job-new")}
    assert Path(volume.path).stat().st_nlink == 1
    return content


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("step", range(24))
async def test_provision_step_fails(tmp_path, restored_os, monkeypatch, replaced, step):
    if replaced:
        await provision(make_target(tmp_path), OLD, "job-old")
    failed = []

    def fail():
        failed.append(step)
        raise OSError(errno.EIO, "Input/output error")

    count_down(step, fail)
    try:
        await provision(make_target(tmp_path), NEW, "job-new")
        committed = True
    except (ProvisionerError, OSError):
        committed = False
    monkeypatch.undo()
    assert failed or committed
    content = await assert_whole(tmp_path, replaced)
    assert not committed or content == NEW


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("step", range(4))
async def test_provision_step_cancelled(tmp_path, monkeypatch, replaced, step):
    if replaced:
        await provision(make_target(tmp_path), OLD, "job-old")
    scope, calls, in_thread = trio.CancelScope(), [], trio.to_thread.run_sync

    async def cancel_at(*args):
        if len(calls) == step:
            scope.cancel()
        calls.append(args)
        return await in_thread(*args)

    monkeypatch.setattr(lvp_target_file.target, "_in_thread", cancel_at)
    with scope:
        await provision(make_target(tmp_path), NEW, "job-new")
    monkeypatch.undo()
    assert staged_files(tmp_path) == []
    content = await assert_whole(tmp_path, replaced)
    assert content == (NEW if step >= 2 else OLD if replaced else None)  # 0 places, 1 makes, 2 commits, 3 cleans up


@pytest.mark.parametrize("replaced", [False, True])
async def test_provision_step_power_failure(tmp_path, replaced):
    """One process for each step, which exits before it can undo anything."""
    folders = [tmp_path / str(step) for step in range(40)]
    for folder in folders:
        folder.mkdir()
        if replaced:
            await provision(make_target(folder), OLD, "job-old")
    child = subprocess.run(
        [sys.executable, __file__, *map(str, folders)], check=True, stdout=subprocess.PIPE, text=True
    )
    contents = [await assert_whole(folder, replaced) for folder in folders]
    ends = child.stdout.split()
    cut, done = ends.count("cut"), ends.count("done")
    assert ends == ["cut"] * cut + ["done"] * done
    assert cut > 8
    assert contents[cut:] == [NEW] * done
    assert done
    assert set(contents) == {NEW, OLD if replaced else None}


def provision_and_lose_power(folder, step):
    """Provision in a forked child that exits abruptly at ``step``. Forking is safe: there are no threads yet."""
    pid = os.fork()
    if pid == 0:
        count_down(step, lambda: os._exit(86))
        trio.run(provision, make_target(folder), NEW, "job-new")
        os._exit(0)
    return {86: "cut", 0: "done"}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


if __name__ == "__main__":
    print(*(provision_and_lose_power(Path(folder), step) for step, folder in enumerate(sys.argv[1:])))
