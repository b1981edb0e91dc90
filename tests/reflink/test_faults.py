# ruff: noqa: ASYNC221, ASYNC240 - small files of a test
"""Each step of making a base and a clone fails, or is the last before a power failure or kill -9."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from provisioner.contracts.errors import ProvisionerError
from tests.plugins.lvp_target_file.test_faults import ACTS, count_down
from tests.reflink.harness import DATA, SIZE, bases, clone, digest, make_base, make_target, staged_files

# More than the changes of the disk that making a base and a volume takes.
STEPS = 40
pytestmark = pytest.mark.slow  # mounted file systems


async def work(folder):
    """Make a base and a clone of it, in place of the volume if there is one."""
    target = make_target(folder)
    try:
        base = await make_base(target, job="job-new")
        return await clone(target, base, job="job-new")
    finally:
        await target.aclose()


def count_down_all(step, end):
    """Call ``end`` at step number ``step``; steps are also the requests to share blocks."""
    original, left = fcntl.ioctl, [False]

    def ended():
        left[0] = True
        end()

    count_down(step, ended)
    opened = os.open  # counts as a step

    def counted(fd, request, *args, **kwargs):
        if request == 0x40049409:  # FICLONE
            os.close(opened("/dev/null", os.O_RDONLY))
        return original(fd, request, *args, **kwargs)

    fcntl.ioctl = counted


async def assert_whole(folder, replaced):
    """Recover; assert that base and volume are each whole or absent. Return the volume's job."""
    target = make_target(folder)
    await target.recover(frozenset())
    assert list(await target.recover(frozenset())) == []
    assert staged_files(folder) == []
    base = await target.base(digest(), "raw")
    assert len(bases(folder)) == (base is not None)
    if base is not None:
        assert (folder / ".lvp/base" / base.name).read_bytes() == DATA
    volume = await target.find("web01")
    await target.aclose()
    if volume is None:
        assert not replaced
        return None
    content = Path(volume.path).read_bytes()
    assert volume.provenance is not None
    if volume.provenance.job_id == "job-new":
        assert content == DATA.ljust(SIZE, b"\0")
        assert base is not None
    else:
        assert content == b"old".ljust(SIZE, b"\0")
    assert Path(volume.path).stat().st_nlink == 1
    return volume.provenance.job_id


async def prepare(folder, replaced):
    folder.mkdir(exist_ok=True)
    if not replaced:
        return
    target = make_target(folder)
    base = await make_base(target, 2, b"old")
    await clone(target, base, job="job-old")
    (folder / ".lvp/base" / base.name).unlink()
    await target.aclose()


@pytest.mark.parametrize("replaced", [False, True])
async def test_power_failure_at_every_step(shared, replaced):
    """One process for each step, which exits before it can undo anything."""
    folders = [shared / str(step) for step in range(STEPS)]
    for folder in folders:
        await prepare(folder, replaced)
    child = subprocess.run(
        [sys.executable, __file__, *map(str, folders)], check=True, stdout=subprocess.PIPE, text=True
    )
    jobs = [await assert_whole(folder, replaced) for folder in folders]
    ends = child.stdout.split()
    cut = ends.count("cut")
    assert ends == ["cut"] * cut + ["done"] * (len(ends) - cut)
    assert 20 < cut < len(ends)
    assert jobs[cut:] == ["job-new"] * (len(ends) - cut)
    assert set(jobs) == {"job-new", "job-old" if replaced else None}


@pytest.mark.parametrize("replaced", [False, True])
async def test_failure_at_every_step(shared, monkeypatch, replaced):
    failures = 0
    for step in range(STEPS):
        folder = shared / str(step)
        await prepare(folder, replaced)
        for name in ACTS:
            monkeypatch.setattr(os, name, getattr(os, name))
        monkeypatch.setattr(fcntl, "ioctl", fcntl.ioctl)

        def fail():
            raise OSError(errno.EIO, "Input/output error")

        count_down_all(step, fail)
        try:
            await work(folder)
        except (ProvisionerError, OSError):
            failures += 1
        monkeypatch.undo()
        await assert_whole(folder, replaced)
    assert 20 < failures < STEPS


def lose_power(folder, step):
    """Work in a forked child that exits abruptly at ``step``. Forking is safe: there are no threads yet."""
    pid = os.fork()
    if pid == 0:
        count_down_all(step, lambda: os._exit(86))
        trio.run(work, folder)
        os._exit(0)
    return {86: "cut", 0: "done"}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


if __name__ == "__main__":
    print(*(lose_power(Path(folder), step) for step, folder in enumerate(sys.argv[1:])))
