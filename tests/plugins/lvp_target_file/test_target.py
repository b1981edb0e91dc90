# ruff: noqa: ASYNC230, ASYNC240 - small files of a test
"""Tests of what only the file target does: extended attributes, unusual files, overwriting in place."""

import errno
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from lvp_target_file import FileSettings, FileTarget, lvp_block_targets, make_file_target
from lvp_target_file.folder import ATTRIBUTE
from provisioner.contracts import MIB, BackEndContext, Capacity, Placement
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    TargetError,
    TargetUnavailableError,
    VolumeExistsError,
    VolumeInUseError,
)
from provisioner.contracts.testing import a_request
from tests.contents import first_bytes

SIZE = 8 * MIB


def make_target(folder, **options):
    return FileTarget(FileSettings(str(folder), **options), BackEndContext("images", folder / ".lvp"))


async def provision(target, request=None, data=b"data", digest="sha256:" + "0" * 64):
    async with target.stage(request or a_request(), verified=True) as staged:
        with Path(staged.device.path).open("r+b") as file:
            file.write(data)
        return await staged.commit(digest)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lvp")


def staged_files(folder):
    return sorted(path.name for path in (folder / ".lvp" / "stage").iterdir())


def test_plugin_registers_one_target():
    (back_end,) = lvp_block_targets()
    assert (back_end.name, back_end.create, back_end.settings) == ("file", make_file_target, FileSettings)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"directory": "images"}, "absolute"),
        ({}, "directory"),
        ({"directory": "/x", "replace": "swop"}, "swop"),
        ({"directory": "/x", "format": "qcow3"}, "qcow3"),
        ({"directory": "/x", "prealocate": True}, "prealocate"),
    ],
)
def test_invalid_settings(table, words):
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(table, FileSettings)


async def test_volume_is_sparse_and_private(tmp_path):
    volume = await provision(make_target(tmp_path))
    status = (tmp_path / "web01.raw").stat()
    assert volume.path == str(tmp_path / "web01.raw")
    assert status.st_size == SIZE
    assert status.st_blocks * 512 < SIZE // 2
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / ".lvp/stage").stat().st_mode) == 0o700
    assert visible(tmp_path) == ["web01.raw"]


async def test_preallocated_volume(tmp_path):
    await provision(make_target(tmp_path, preallocate=True))
    assert (tmp_path / "web01.raw").stat().st_blocks * 512 >= SIZE


async def test_replace_keeps_owner_and_mode(tmp_path):
    target = make_target(tmp_path)
    volume = await provision(target)
    Path(volume.path).chmod(0o640)
    os.chown(volume.path, 64055, 64056)
    await provision(target, a_request(job_id="job-2"))
    status = Path(volume.path).stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 64055, 64056)


@pytest.mark.parametrize("kind", ["symlink", "dangling", "folder", "fifo", "hard link"])
async def test_unusual_file_is_not_changed(tmp_path, kind):
    path, other = tmp_path / "web01.raw", tmp_path / "other"
    if kind != "dangling":
        other.write_bytes(bytes(SIZE))
    make = {
        "symlink": lambda: path.symlink_to(other),
        "dangling": lambda: path.symlink_to(other),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "hard link": lambda: path.hardlink_to(other),
    }
    make[kind]()
    before = path.lstat()
    with pytest.raises(VolumeExistsError, match="web01"):
        await make_target(tmp_path).placement(a_request())
    with pytest.raises(NotFoundError):
        await make_target(tmp_path).remove("web01")
    assert os.path.samestat(path.lstat(), before)


async def test_foreign_volume(tmp_path):
    """A volume that another program created is found and replaced, but not listed or removed."""
    (tmp_path / "web01.raw").write_bytes(b"theirs".ljust(SIZE, b"\0"))
    target = make_target(tmp_path)
    found = await target.find("web01")
    assert found is not None
    assert found.provenance is None
    assert list(await target.list()) == []
    with pytest.raises(NotFoundError):
        await target.remove("web01")
    volume = await provision(target)
    assert list(await target.list()) == [volume]


@pytest.mark.parametrize("way", ["renamed", "copied back", "made anew"])
async def test_moved_mark_is_not_ours(tmp_path, way):
    target = make_target(tmp_path)
    volume = await provision(target)
    mark = os.getxattr(volume.path, ATTRIBUTE)
    moved = tmp_path / "moved.raw"
    Path(volume.path).rename(moved)
    if way == "copied back":
        shutil.copyfile(moved, volume.path)
        os.setxattr(volume.path, ATTRIBUTE, mark)
    elif way == "made anew":
        moved.unlink()  # the new file may get the very same inode number
        (tmp_path / "web01.raw").write_bytes(bytes(SIZE))
    assert list(await target.list()) == []
    for name in ("web01", "moved"):
        with pytest.raises(NotFoundError):
            await target.remove(name)


@pytest.mark.parametrize("mark", [b"{broken", b'{"?":' + b"[" * 3000])
async def test_malformed_mark_is_not_ours(mark, tmp_path):
    (tmp_path / "web01.raw").write_bytes(bytes(SIZE))
    os.setxattr(tmp_path / "web01.raw", ATTRIBUTE, mark)
    found = await make_target(tmp_path).find("web01")
    assert found is not None
    assert found.provenance is None


async def test_long_url_is_cut(tmp_path):
    request = a_request()
    request = replace(request, provenance=replace(request.provenance, image_url="https://example.com/" + "x" * 4000))
    await provision(make_target(tmp_path), request)
    found = await make_target(tmp_path).find("web01")
    assert found is not None
    assert found.provenance is not None
    assert found.provenance.image_url.startswith("https://example.com/xxx")


async def test_stage_without_attributes(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(TargetError, match="extended attributes"):
        async with make_target(tmp_path).stage(a_request(), verified=True):
            raise AssertionError("nothing can be committed there")
    assert staged_files(tmp_path) == []


async def test_missing_folder_fails(tmp_path):
    target = make_target(tmp_path / "not-mounted")
    for ask in (lambda: target.find("web01"), target.list, target.capacity, lambda: target.placement(a_request())):
        with pytest.raises(TargetUnavailableError, match="not-mounted"):
            await ask()


async def test_commit_name_taken_meanwhile(tmp_path):
    async with make_target(tmp_path).stage(a_request(), verified=True) as staged:
        (tmp_path / "web01.raw").write_bytes(b"theirs")
        with pytest.raises(VolumeExistsError, match="was created while"):
            await staged.commit(None)
    assert (tmp_path / "web01.raw").read_bytes() == b"theirs"
    assert staged_files(tmp_path) == []


@pytest.mark.parametrize("new", [None, b"theirs"])
async def test_commit_volume_replaced_meanwhile(tmp_path, new):
    target = make_target(tmp_path)
    await provision(target)
    async with target.stage(a_request(job_id="job-2"), verified=True) as staged:
        (tmp_path / "web01.raw").rename(tmp_path / "aside")
        if new is not None:
            (tmp_path / "web01.raw").write_bytes(new)
        with pytest.raises(VolumeExistsError, match="removed or replaced"):
            await staged.commit(None)
    assert visible(tmp_path) == (["aside"] if new is None else ["aside", "web01.raw"])


@pytest.fixture
def without_room(monkeypatch):
    """Make every folder look too full for two volumes, but not for one."""
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda self: Capacity(2 * SIZE, SIZE // 2))


async def an_old_one(folder):
    (folder / "web01.raw").write_bytes(b"old" * (SIZE // 3) + b"ol")


async def test_in_place_needs_verified_image(tmp_path, without_room):
    await an_old_one(tmp_path)
    target = make_target(tmp_path, replace="in-place", foreign="overwrite")
    assert await target.placement(a_request()) is Placement.IN_PLACE
    with pytest.raises(VolumeExistsError, match="verified beforehand"):
        async with target.stage(a_request(), verified=False):
            raise AssertionError("the old content would be lost")
    assert first_bytes(tmp_path / "web01.raw", 6) == b"oldold"
    async with target.stage(a_request(), verified=True) as staged:
        assert staged.device.reads_zero
        with Path(staged.device.path).open("rb") as file:
            assert not any(file.read())
        assert await target.find("web01") is None
        volume = await staged.commit(None)
    assert volume == await target.find("web01")
    assert visible(tmp_path) == ["web01.raw"]


async def test_in_place_without_commit(tmp_path, without_room):
    await an_old_one(tmp_path)
    target = make_target(tmp_path, replace="in-place", foreign="overwrite")
    async with target.stage(a_request(), verified=True):
        pass
    assert visible(tmp_path) == []
    assert staged_files(tmp_path) == []


async def test_swap_without_room(tmp_path, without_room):
    await an_old_one(tmp_path)
    with pytest.raises(NoSpaceError):
        async with make_target(tmp_path).stage(a_request(), verified=True):
            raise AssertionError("there is no room")
    assert first_bytes(tmp_path / "web01.raw", 6) == b"oldold"


async def test_in_use_error_names_process(tmp_path):
    volume = await provision(make_target(tmp_path))
    with Path(volume.path).open("rb") as file:
        child = await trio.lowlevel.open_process(["tail", "-f", "/dev/null"], stdin=file)
    try:
        with pytest.raises(VolumeInUseError, match=rf"process tail \({child.pid}\)"):
            await make_target(tmp_path).placement(a_request())
    finally:
        child.kill()
        await child.wait()


async def test_recover_commit_between_link_and_unlink(tmp_path):
    target = make_target(tmp_path)
    volume = await provision(target)
    (tmp_path / ".lvp/stage/job-1.web01").hardlink_to(volume.path)
    assert len(await target.recover(frozenset())) == 1
    assert list(await target.list()) == [volume]
    assert Path(volume.path).stat().st_nlink == 1


async def test_stage_replaces_earlier_attempt(tmp_path):
    target = make_target(tmp_path)
    await provision(target)
    (tmp_path / ".lvp/stage/job-2.web02").write_bytes(b"stale")
    volume = await provision(target, a_request("web02", job_id="job-2"), data=b"new")
    with Path(volume.path).open("rb") as file:
        assert file.read(5) == b"new\0\0"


async def test_cancel_during_allocation(tmp_path, monkeypatch):
    scope, steps = trio.CancelScope(), []

    def cancel_in_the_first(*args):
        steps.append(args)
        trio.from_thread.run_sync(scope.cancel)

    monkeypatch.setattr(os, "posix_fallocate", cancel_in_the_first)
    monkeypatch.setattr("lvp_target_file.folder._ALLOCATE_STEP", MIB)
    with scope:
        async with make_target(tmp_path, preallocate=True).stage(a_request(), verified=True):
            raise AssertionError("the job was cancelled during the allocation")
    assert scope.cancelled_caught
    assert len(steps) == 1
    assert staged_files(tmp_path) == []


async def test_diagnose(tmp_path, monkeypatch):
    assert all(finding.ok and not finding.fix for finding in await make_target(tmp_path).diagnose())
    (gone,) = await make_target(tmp_path / "gone").diagnose()
    assert not gone.ok
    assert gone.fix
    monkeypatch.setattr("lvp_target_file.folder._supports_attributes", lambda path: False)
    assert [finding.ok for finding in await make_target(tmp_path).diagnose()] == [True, False]
