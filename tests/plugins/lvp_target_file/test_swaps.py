# ruff: noqa: ASYNC230, ASYNC240 - small files of a test
"""Tests of openers during a swap or removal, and of recovery after a crash."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from lvp_target_file import FileSettings, FileTarget, holders, swaps
from lvp_target_file.names import StagedFile, staged_name
from lvp_target_file.placement import MAX_NAME
from provisioner.contracts import MIB, BackEndContext, Capacity
from provisioner.contracts.errors import VolumeInUseError
from provisioner.contracts.testing import a_request
from tests.contents import first_bytes
from tests.plugins.lvp_target_file.openers import Opener, opened_before_rename

SIZE = 8 * MIB


def make_target(folder, **options):
    return FileTarget(FileSettings(str(folder), **options), BackEndContext("images", folder / ".lvp"))


async def provision(target, data, job_id="job-1"):
    async with target.stage(a_request(job_id=job_id), verified=True) as staged:
        with Path(staged.device.path).open("r+b") as file:
            file.write(data)
        return await staged.commit(None)


def files_below(folder):
    return sorted(path.name for path in (folder / ".lvp" / "stage").iterdir())


@contextmanager
def opened_after_rename(volume):
    """Open the old file after its rename, like an opener that looked its path up before.

    The kernel looks a path up, then opens the file. To simulate a swap between the two, open the file under the name
    that it was moved to.
    """
    rename, inode = os.rename, Path(volume.path).stat().st_ino
    openers = []

    def gated(source, target):
        rename(source, target)
        if not openers and str(volume.path) in {str(source), str(target)}:
            stages = Path(volume.path).parent / ".lvp" / "stage"
            openers.append(Opener(next(path for path in stages.iterdir() if path.stat().st_ino == inode)))
            openers[0].start()

    os.rename = gated
    try:
        yield lambda: openers[0].inode()  # noqa: PLW0108 - the list is still empty
    finally:
        os.rename = rename
        openers[0].close()


@pytest.fixture(params=["leases", "no leases"])
def _with_and_without_leases(request, monkeypatch):
    if request.param == "no leases":
        monkeypatch.setattr(holders, "_lease_refused", lambda fd: None)


@pytest.mark.usefixtures("_with_and_without_leases")
@pytest.mark.parametrize("attempt", range(20))
async def test_swap_undone_for_late_opener(tmp_path, attempt):
    """The opener looked the path up before the swap and opens the file during the wait after it."""
    target = make_target(tmp_path)
    old = await provision(target, b"old")
    before = Path(old.path).stat()
    with opened_after_rename(old) as opened_inode:
        with pytest.raises(VolumeInUseError, match="web01 is in use by"):
            await provision(target, b"new", "job-2")
        assert opened_inode() == before.st_ino
    after = Path(old.path).stat()
    assert (after.st_ino, after.st_nlink, after.st_mtime_ns) == (before.st_ino, 1, before.st_mtime_ns)
    assert await target.find("web01") == old
    assert files_below(tmp_path) == []


@pytest.mark.usefixtures("_with_and_without_leases")
async def test_remove_undone_for_late_opener(tmp_path):
    target = make_target(tmp_path)
    old = await provision(target, b"old")
    with opened_after_rename(old) as opened_inode:
        with pytest.raises(VolumeInUseError):
            await target.remove("web01")
        assert opened_inode() == Path(old.path).stat().st_ino
    assert await target.find("web01") == old
    assert files_below(tmp_path) == []


@contextmanager
def _opened_before_rename(volume):
    with opened_before_rename(volume) as opener:
        yield opener.inode


@pytest.mark.parametrize("opened", [_opened_before_rename, opened_after_rename])
async def test_take_over_undone_for_opener(tmp_path, monkeypatch, opened):
    """Overwriting in place destroys the content, so it must not start while the volume is open."""
    target = make_target(tmp_path, replace="in-place")
    old = await provision(target, b"old")
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda self: Capacity(2 * SIZE, SIZE - 4096))
    with opened(old) as opened_inode:
        with pytest.raises(VolumeInUseError):
            await provision(target, b"new", "job-2")
        assert opened_inode() == Path(old.path).stat().st_ino
    assert Path(old.path).read_bytes() == b"old".ljust(SIZE, b"\0")
    assert await target.find("web01") == old


async def test_open_after_swap_gets_new_volume(tmp_path):
    target = make_target(tmp_path)
    old = await provision(target, b"old")
    rename, openers = os.rename, []

    def gated(source, destination):
        rename(source, destination)
        openers.append(Opener(old.path))
        openers[0].start()

    os.rename = gated
    try:
        new = await provision(target, b"new", "job-2")
    finally:
        os.rename = rename
    assert openers[0].inode() == Path(new.path).stat().st_ino
    assert first_bytes(Path(new.path), 3) == b"new"
    openers[0].close()


async def test_swap_despite_brief_open(tmp_path, monkeypatch):
    """A pool refresh opens every file briefly."""
    target = make_target(tmp_path)
    old = await provision(target, b"old")
    async with target.stage(a_request(job_id="job-2"), verified=True) as staged:
        with Path(old.path).open("rb") as file:
            monkeypatch.setattr("time.sleep", lambda _: file.close())
            await staged.commit(None)
    assert await target.find("web01") != old


@pytest.mark.parametrize("kind", ["old-", "gone-"])
async def test_recover_keeps_open_aside_file(tmp_path, kind):
    """The service crashed during a swap, while a late opener had the old file."""
    target = make_target(tmp_path)
    await provision(target, b"new")
    aside = tmp_path / ".lvp" / "stage" / f"{kind}job-9.web01"
    aside.write_bytes(b"old")
    with aside.open("rb"):
        (sentence,) = await target.recover(frozenset())
        assert "left" in sentence
        assert "is kept" in sentence
        assert aside.exists()
    assert len(await target.recover(frozenset())) == 1
    assert files_below(tmp_path) == []


async def test_retried_job_keeps_open_aside_file(tmp_path):
    target = make_target(tmp_path)
    volume = await provision(target, b"old")
    async with target.stage(a_request(job_id="job-2"), verified=True) as staged:
        aside = swaps.old_of(target._folder, a_request(job_id="job-2"))
        aside.write_bytes(b"older")
        with aside.open("rb"), pytest.raises(VolumeInUseError, match="is kept"):
            await staged.commit(None)
        assert aside.read_bytes() == b"older"
    assert await target.find("web01") == volume
    assert files_below(tmp_path) == []


async def test_recover_drops_extra_link_of_volume(tmp_path):
    """The service crashed after the old volume got a second name. The volume is still in place and may be in use."""
    target = make_target(tmp_path)
    volume = await provision(target, b"old")
    (tmp_path / ".lvp" / "stage" / "old-job-9.web01").hardlink_to(volume.path)
    with Path(volume.path).open("rb"):
        assert len(await target.recover(frozenset())) == 1
    assert await target.find("web01") == volume
    assert files_below(tmp_path) == []


async def test_recover_completes_removal(tmp_path, monkeypatch):
    target = make_target(tmp_path)
    await provision(target, b"old")

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(swaps, "discard", die)
    with pytest.raises(KeyboardInterrupt):
        await target.remove("web01")
    monkeypatch.undo()
    assert await target.find("web01") is None
    assert list(await make_target(tmp_path).recover(frozenset())) == [
        "removed volume web01, which was being removed",
    ]
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("kind", ["", "old-", "gone-"])
def test_staged_name_round_trip(kind, tmp_path):
    job = "0a1b2c3d" if kind == "gone-" else "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
    owner, volume = "0123456789ab", "v" * (MAX_NAME - 4) + ".a.b"
    name = staged_name(owner, job, volume, kind)
    assert len(name) <= 255
    path = tmp_path / name
    assert StagedFile.read(path) == StagedFile(path, owner, kind, job, volume)


@pytest.mark.parametrize(
    ("name", "owner", "job", "volume"),
    [("job-1.web01", "", "job-1", "web01"), ("junk", "", "junk", ""), ("@x.y", "", "@x", "y")],
)
def test_read_other_names(name, owner, job, volume, tmp_path):
    file = StagedFile.read(tmp_path / name)
    assert (file.owner, file.job, file.volume) == (owner, job, volume)
