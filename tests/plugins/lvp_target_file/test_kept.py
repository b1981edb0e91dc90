# ruff: noqa: ASYNC221, ASYNC240 - small files of a test
"""Tests of kept volumes in a folder: power failures, room, overwriting in place, marks."""

import errno
import os
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from lvp_target_file import FileSettings, FileTarget
from lvp_target_file.kept import ATTRIBUTE
from provisioner.contracts import MIB, BackEndContext, Capacity, Duration, Owner, Placement, blockdev
from provisioner.contracts.errors import NoSpaceError, ProvisionerError, VolumeExistsError
from provisioner.contracts.testing import a_request
from tests.contents import first_bytes
from tests.plugins.lvp_target_file.test_faults import ACTS, count_down, staged_files

pytestmark = pytest.mark.slow  # each step is made to fail

SIZE = 8 * MIB
OLD, NEW = b"old", b"new"
# More than the changes of the disk that each of the works below makes.
STEPS = {"replace_foreign": 34, "restore": 23, "restore_to_free_name": 15}


def make_target(folder, **options):
    return FileTarget(FileSettings(str(folder), **options), BackEndContext("images", folder / ".lvp"))


def make_foreign(folder, data=OLD):
    (folder / "web01.raw").write_bytes(data.ljust(SIZE, b"\0"))


async def provision(target, data, job_id="job-1"):
    async with target.stage(a_request(job_id=job_id), verified=True) as staged:
        fd = os.open(staged.device.path, os.O_RDWR)
        os.pwrite(fd, data, 0)
        os.close(fd)
        return await staged.commit(None)


@asynccontextmanager
async def opened(folder):
    """A target that has released the folder at the end, even if an error still refers to it."""
    target = make_target(folder)
    try:
        yield target
    finally:
        await target.aclose()


async def replace_foreign(folder):
    async with opened(folder) as target:
        await provision(target, NEW)


async def restore(folder):
    async with opened(folder) as target:
        (kept,) = await target.kept()
        await target.restore(kept.kept_as, "restore-1")


async def restore_to_free_name(folder):
    await restore(folder)


async def prepare(folder, work):
    folder.mkdir(exist_ok=True)
    make_foreign(folder)
    if work is not replace_foreign:
        await replace_foreign(folder)
    if work is restore_to_free_name:
        await make_target(folder).remove("web01")


async def assert_nothing_lost(folder, work):
    """Recover; assert that each content exists exactly once, as volume or kept. Return the volume's content."""
    target = make_target(folder)
    await target.recover(frozenset())
    assert list(await target.recover(frozenset())) == []
    assert staged_files(folder) == []
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lvp") in ([], ["web01.raw"])
    kept = {first_bytes(folder / ".lvp/kept" / one.kept_as, 3): one for one in await target.kept()}
    kept_files = list((folder / ".lvp/kept").glob("*"))
    assert len(kept) == len(kept_files)
    volume = await target.find("web01")
    content = None if volume is None else first_bytes(Path(volume.path), 3)
    if volume is not None:
        assert Path(volume.path).stat().st_nlink == 1
        assert volume.owner is (Owner.FOREIGN if content == OLD else Owner.OURS)
    for data, one in kept.items():
        assert one.owner is (Owner.FOREIGN if data == OLD else Owner.OURS)
        assert one.volume == "web01"
    assert content not in kept
    wanted = {OLD} if work is restore_to_free_name or (work is replace_foreign and content == OLD) else {OLD, NEW}
    assert {*kept, *([content] if content else [])} == wanted
    return content


WORK = {work.__name__: work for work in (replace_foreign, restore, restore_to_free_name)}


@pytest.mark.parametrize("work", WORK)
async def test_power_failure_at_every_step(tmp_path, work):
    """One process for each step, which exits before it can undo anything."""
    folders = [tmp_path / str(step) for step in range(STEPS[work])]
    for folder in folders:
        await prepare(folder, WORK[work])
    child = subprocess.run(
        [sys.executable, __file__, work, *map(str, folders)], check=True, stdout=subprocess.PIPE, text=True
    )
    contents = [await assert_nothing_lost(folder, WORK[work]) for folder in folders]
    ends = child.stdout.split()
    cut = ends.count("cut")
    assert ends == ["cut"] * cut + ["done"] * (len(ends) - cut)
    assert 5 < cut < len(ends)
    new, old = (NEW, OLD) if work == "replace_foreign" else (OLD, NEW if work == "restore" else None)
    assert set(contents) == {new, old}
    assert contents[cut:] == [new] * (len(ends) - cut)


@pytest.mark.parametrize(("work", "step"), [(work, step) for work in WORK for step in range(STEPS[work])])
async def test_failure_at_every_step(tmp_path, monkeypatch, work, step):
    for name in ACTS:
        monkeypatch.setattr(os, name, getattr(os, name))
    await prepare(tmp_path, WORK[work])

    def fail():
        raise OSError(errno.EIO, "Input/output error")

    count_down(step, fail)
    with suppress(ProvisionerError, OSError):
        await WORK[work](tmp_path)
    monkeypatch.undo()
    await assert_nothing_lost(tmp_path, WORK[work])


@pytest.fixture
def room(monkeypatch):
    """Let the folder have room for 1.5 volumes; return a function that sets another number."""
    whole = [1.5]

    def capacity(folder):
        volumes = [*folder.path.glob("*.raw"), *folder.stages.glob("*"), *(folder.path / ".lvp/kept").glob("*")]
        return Capacity(2 * SIZE, max(0, int((whole[0] - len(volumes)) * SIZE)))

    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", capacity)
    return lambda number: whole.__setitem__(0, number)


async def test_job_removes_kept_volumes_for_room(tmp_path, room):
    """Ours only, the oldest first, and no more than needed."""
    room(4.5)
    target = make_target(tmp_path, keep_replaced=Duration(3600), preallocate=True)
    make_foreign(tmp_path)
    for number in range(3):
        async with target.stage(a_request(job_id=f"job-{number}"), verified=True) as staged:
            Path(staged.device.path).write_bytes(b"x" * SIZE)
            await staged.commit(None)
    assert [(kept.job_id, kept.owner.value) for kept in await by_age(target)] == [
        ("job-0", "foreign"), ("job-1", "ours"), ("job-2", "ours"),
    ]  # fmt: skip
    await provision(target, NEW, "job-3")
    assert [kept.job_id for kept in await by_age(target)] == ["job-0", "job-2", "job-3"]


async def by_age(target):
    return sorted(await target.kept(), key=lambda kept: kept.replaced_at)


@pytest.mark.parametrize("remove_kept", ["ours", "never"])
async def test_foreign_volume_is_not_removed_for_room(tmp_path, room, remove_kept):
    room(2.5)
    target = make_target(tmp_path, remove_kept=remove_kept)
    (tmp_path / "web01.raw").write_bytes(b"x" * SIZE)
    await provision(target, NEW)
    with pytest.raises(NoSpaceError):
        await target.placement(a_request("web02", SIZE, "job-2"))
    assert len(await target.kept()) == 1


async def test_foreign_volume_is_removed_for_room_if_set(tmp_path, room):
    room(2.5)
    target = make_target(tmp_path, remove_kept="all")
    (tmp_path / "web01.raw").write_bytes(b"x" * SIZE)
    await provision(target, NEW)
    assert await target.placement(a_request("web02", SIZE, "job-2")) is Placement.NEW
    assert len(await target.kept()) == 1
    async with target.stage(a_request("web02", SIZE, "job-2"), verified=True):
        assert list(await target.kept()) == []


async def test_foreign_volume_is_not_overwritten_in_place(tmp_path, room):
    target = make_target(tmp_path, replace="in-place")
    (tmp_path / "web01.raw").write_bytes(b"x" * SIZE)
    with pytest.raises(VolumeExistsError, match="no room to keep it"):
        await target.placement(a_request())
    with pytest.raises(VolumeExistsError, match='foreign = "overwrite"'):
        await provision(target, NEW)
    assert (tmp_path / "web01.raw").read_bytes() == b"x" * SIZE


async def test_blank_foreign_volume_is_overwritten_in_place(tmp_path, room):
    target = make_target(tmp_path, replace="in-place")
    (tmp_path / "web01.raw").write_bytes(bytes(SIZE))
    volume = await provision(target, NEW)
    assert volume.replaced is not None
    assert (volume.replaced.owner, volume.replaced.kept_as) == (Owner.FOREIGN, None)


async def test_foreign_volume_is_overwritten_if_set(tmp_path, room):
    target = make_target(tmp_path, replace="in-place", foreign="overwrite")
    (tmp_path / "web01.raw").write_bytes(b"x" * SIZE)
    await provision(target, NEW)
    assert (tmp_path / "web01.raw").read_bytes() == NEW.ljust(SIZE, b"\0")
    assert list(await target.kept()) == []


async def test_mark_of_failed_swap_keeps_nothing(tmp_path):
    """A swap that failed leaves its mark on the volume; a later one that keeps nothing is not misled."""
    make_foreign(tmp_path)
    os.setxattr(tmp_path / "web01.raw", ATTRIBUTE, b'{"kept_as":"@kept.1.web01","volume":"web01","job_id":"job-0",'
                b'"replaced_at":0,"kept_until":99999999999}')  # fmt: skip
    target = make_target(tmp_path, foreign="overwrite", keep_replaced_foreign=Duration(0))
    await provision(target, NEW)
    assert list(await target.kept()) == []
    assert staged_files(tmp_path) == []


@pytest.mark.parametrize("mark", [None, b"{broken", b"{}"])
async def test_other_files_are_not_listed(tmp_path, mark):
    target = make_target(tmp_path)
    path = tmp_path / ".lvp/kept/@kept.1.web01"
    path.parent.mkdir(parents=True)
    path.write_bytes(OLD)
    if mark is not None:
        os.setxattr(path, ATTRIBUTE, mark)
    assert list(await target.kept()) == []
    assert list(await target.recover(frozenset())) == []
    assert path.exists()


def test_settings_that_keep_nothing():
    with pytest.raises(ValueError, match="keep_replaced_foreign must be over 0s"):
        FileSettings("/x", keep_replaced_foreign=Duration(0))
    FileSettings("/x", keep_replaced_foreign=Duration(0), foreign="overwrite")


@pytest.mark.parametrize(
    ("content", "blank"),
    [(b"", True), (bytes(3 * MIB), True), (bytes(3 * MIB - 1) + b"x", False), (b"x" + bytes(MIB), False)],
)
def test_is_blank(tmp_path, content, blank):
    path = tmp_path / "disk"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert blockdev.is_blank(file.fileno()) is blank


def test_is_blank_skips_holes(tmp_path, monkeypatch):
    path, reads, pread = tmp_path / "disk", [], os.pread
    with path.open("wb") as file:
        file.truncate(2**40)
        file.seek(2**39)
        file.write(bytes(4096))
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(args) or pread(*args))
    with path.open("rb") as file:
        assert blockdev.is_blank(file.fileno())
    assert len(reads) <= 2


def work_and_lose_power(work, folder, step):
    """Work in a forked child that exits abruptly at ``step``. Forking is safe: there are no threads yet."""
    pid = os.fork()
    if pid == 0:
        count_down(step, lambda: os._exit(86))
        trio.run(WORK[work], folder)
        os._exit(0)
    return {86: "cut", 0: "done"}[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]


if __name__ == "__main__":
    print(*(work_and_lose_power(sys.argv[1], Path(folder), step) for step, folder in enumerate(sys.argv[2:])))
