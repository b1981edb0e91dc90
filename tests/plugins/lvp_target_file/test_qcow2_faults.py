# ruff: noqa: ASYNC221, ASYNC240 - small files of a test
"""Each step of a base, an overlay and a copy fails, is cancelled, or is the last before a kill or a power failure."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import lvp_target_file.clones
import lvp_target_file.target
from provisioner.contracts.errors import ProvisionerError
from tests.plugins.lvp_target_file import test_faults
from tests.plugins.lvp_target_file.qcow2_images import (
    DIGEST,
    IMAGE,
    SIZE,
    bases,
    check,
    clone,
    content,
    make_base,
    make_target,
    provision,
    staged_files,
)

ACTS = (*test_faults.ACTS, "pwrite", "chmod")
OLD, NEW = b"old".ljust(SIZE, b"\0"), IMAGE.ljust(SIZE, b"\0")
OLD_DIGEST = "sha256:" + "0d" * 32
# More than the changes of the disk that making a base and a volume takes.
STEPS = 60
KINDS = pytest.mark.parametrize("kind", ["overlay", "copy"])
REPLACED = pytest.mark.parametrize("replaced", [False, True])
pytestmark = pytest.mark.slow  # hundreds of processes


async def work(folder, kind):
    """Make a volume, in place of the one that is there, if any."""
    target = make_target(folder, clone=kind == "overlay")
    try:
        if kind == "copy":
            await provision(target, IMAGE, job="job-new")
        else:
            await clone(target, await make_base(target, job="job-new"), job="job-new")
    finally:
        await target.aclose()


async def prepare(folder, replaced):
    folder.mkdir(exist_ok=True)
    if replaced:
        target = make_target(folder)
        await clone(target, await make_base(target, b"old", OLD_DIGEST), job="job-old")
        await target.aclose()


async def assert_whole(folder, replaced):
    """Recover; assert that bases and volume are each whole or absent. Return the volume's job."""
    target = make_target(folder)
    await target.recover(frozenset())
    assert list(await target.recover(frozenset())) == []
    assert staged_files(folder) == []
    whole = [base for base in [await target.base(DIGEST, "raw"), await target.base(OLD_DIGEST, "raw")] if base]
    assert bases(folder) == sorted(base.name for base in whole)
    for base in whole:
        assert (folder / ".lvp/backing" / base.name).read_bytes() == (IMAGE if base.digest == DIGEST else b"old")
    volume = await target.find("web01")
    await target.aclose()
    if volume is None:
        assert not replaced
        return None
    path = Path(volume.path)
    check(path)
    assert volume.provenance is not None
    assert (content(path), volume.provenance.job_id) in {(OLD, "job-old"), (NEW, "job-new")}
    assert path.stat().st_nlink == 1
    return volume.provenance.job_id


@KINDS
@REPLACED
async def test_killed_at_every_step(tmp_path, replaced, kind):
    """One process for each step, which ends before it can undo anything."""
    folders = [tmp_path / str(step) for step in range(STEPS)]
    for folder in folders:
        await prepare(folder, replaced)
    child = subprocess.run(
        [sys.executable, __file__, kind, *map(str, folders)], check=True, stdout=subprocess.PIPE, text=True
    )
    jobs = [await assert_whole(folder, replaced) for folder in folders]
    ends = child.stdout.split()
    cut = ends.count("cut")
    assert ends == ["cut"] * cut + ["done"] * (len(ends) - cut)
    assert 15 < cut < len(ends)
    assert jobs[cut:] == ["job-new"] * (len(ends) - cut)
    assert set(jobs) == {"job-new", "job-old" if replaced else None}


@KINDS
@REPLACED
async def test_failure_at_every_step(tmp_path, monkeypatch, replaced, kind):
    failures = 0
    for step in range(STEPS):
        folder = tmp_path / str(step)
        await prepare(folder, replaced)
        for name in ACTS:
            monkeypatch.setattr(os, name, getattr(os, name))

        def fail():
            raise OSError(errno.EIO, "Input/output error")

        test_faults.count_down(step, fail, ACTS)
        try:
            await work(folder, kind)
            failed = False
        except (ProvisionerError, OSError):
            failed = True
        monkeypatch.undo()
        job = await assert_whole(folder, replaced)
        assert failed or job == "job-new"
        failures += failed
    assert 15 < failures < STEPS


@KINDS
@REPLACED
async def test_cancel_at_every_thread(tmp_path, monkeypatch, replaced, kind):
    """A commit goes on in spite of the cancel; all else is undone."""
    in_thread, outcomes = trio.to_thread.run_sync, []
    for step in range(12):
        folder, scope, calls = tmp_path / str(step), trio.CancelScope(), []
        await prepare(folder, replaced)

        async def cancel_at(*args, step=step, scope=scope, calls=calls):
            if len(calls) == step:
                scope.cancel()
            calls.append(args)
            return await in_thread(*args)

        for module in (lvp_target_file.target, lvp_target_file.clones):
            monkeypatch.setattr(module, "_in_thread", cancel_at)
        with scope:
            await work(folder, kind)
        monkeypatch.undo()
        assert staged_files(folder) == []
        outcomes.append(await assert_whole(folder, replaced))
    before = "job-old" if replaced else None
    done = outcomes.index("job-new")
    assert outcomes == [before] * done + ["job-new"] * (12 - done)
    assert done > 0


@pytest.mark.parametrize("act", ["pwrite", "fsync"])
@pytest.mark.parametrize("kill", [False, True])
async def test_grow_is_one_write(tmp_path, act, kill):
    """The disk has the old size or the new one, and a failure leaves the old one."""
    target = make_target(tmp_path)
    volume = await clone(target, await make_base(target))
    await target.aclose()
    child = subprocess.run([sys.executable, __file__, "grow", tmp_path, act, str(int(kill))], check=False)
    assert child.returncode == (-9 if kill else 0)
    target = make_target(tmp_path)
    assert list(await target.recover(frozenset())) == []
    found = await target.find("web01")
    assert found.size_bytes == (2 * SIZE if kill and act == "fsync" else SIZE)
    assert found.provenance == volume.provenance
    check(volume.path)
    assert (await target.resize("web01", 2 * SIZE)).size_bytes == 2 * SIZE
    assert content(volume.path) == IMAGE.ljust(2 * SIZE, b"\0")


def grow(folder, act, kill):
    """Grow the volume, with one change that kills this process or fails once."""
    original = getattr(os, act)

    def fail(*args):
        if kill:
            os.kill(os.getpid(), 9)
        setattr(os, act, original)
        raise OSError(errno.EIO, "Input/output error")

    async def run():
        target = make_target(folder)
        await target.recover(frozenset())
        setattr(os, act, fail)
        with pytest.raises(ProvisionerError):
            await target.resize("web01", 2 * SIZE)

    trio.run(run)


def lose_power(kind, folder, step):
    """Work in a forked child that ends abruptly at ``step``. Forking is safe: there are no threads yet."""
    pid = os.fork()
    if pid == 0:
        test_faults.count_down(step, lambda: os.kill(os.getpid(), 9), ACTS)
        trio.run(work, folder, kind)
        os._exit(0)
    return {-9: "cut", 0: "done"}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


if __name__ == "__main__":
    if sys.argv[1] == "grow":
        grow(Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1")
    else:
        print(*(lose_power(sys.argv[1], Path(folder), step) for step, folder in enumerate(sys.argv[2:])))
