# ruff: noqa: ASYNC240 - small files of a test
"""What only the file target does with reflinks: shared blocks, stale data, changed bases, other file systems."""

import os
import shutil
from pathlib import Path

import pytest

from lvp_target_file import FileCloneTarget, FileTarget, reflink
from provisioner.contracts import MIB, Placement
from provisioner.contracts.errors import BaseGoneError, InvalidRequestError
from tests.contents import first_bytes
from tests.reflink.conftest import mounted, run
from tests.reflink.harness import (
    DATA,
    SIZE,
    bases,
    clone,
    digest,
    make_base,
    make_target,
    request,
    staged_files,
    taken,
    write,
)

pytestmark = pytest.mark.slow  # mounted file systems
PAGE = 4096


async def test_clones_share_blocks(shared):
    target = make_target(shared)
    base = await make_base(target)
    await clone(target, base)
    second = await clone(target, base, "web02", "job-2")
    assert set(taken(shared).values()) == {0}
    assert "shared" in run("filefrag", "-v", second.path)
    write(second.path, os.urandom(MIB))
    assert taken(shared) == {base.name: 0, "web01.raw": 0, "web02.raw": MIB}


@pytest.mark.parametrize("size", [1, 511, PAGE + 1, 3 * PAGE - 1])
async def test_nothing_stale_after_the_image(shared, size):
    """The image ends within a block, and the blocks after it had other content."""
    write_and_free(shared / "previous")
    target = make_target(shared)
    base = await make_base(target, data=b"\xa5" * size)
    volume = await clone(target, base)
    assert Path(volume.path).read_bytes() == (b"\xa5" * size).ljust(SIZE, b"\0")


def write_and_free(path):
    path.write_bytes(b"\x5a" * (64 * MIB))
    run("sync", "--file-system", path)
    path.unlink()


async def test_base_is_read_only_and_private(shared):
    target = make_target(shared)
    base = await make_base(target)
    assert base.name == f"sha256-{1:064x}.raw"
    assert (shared / ".lvp/base" / base.name).stat().st_mode & 0o777 == 0o400
    assert (shared / ".lvp/base").stat().st_mode & 0o777 == 0o700
    assert (await clone(target, base)).path == str(shared / "web01.raw")
    assert (shared / "web01.raw").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("way", ["written", "extended", "copied", "touched", "emptied"])
async def test_changed_base_is_not_used(shared, way):
    target = make_target(shared)
    base = await make_base(target)
    path = shared / ".lvp/base" / base.name
    if way == "written":
        write(path, b"changed")
    elif way == "extended":
        os.truncate(path, base.size_bytes + PAGE)
    elif way == "copied":
        run("cp", "--archive", path, shared / "copy")
        (shared / "copy").rename(path)
    elif way == "touched":
        os.utime(path)
    else:
        path.write_bytes(b"")
    assert await target.base(digest(), "raw") is None
    with pytest.raises(BaseGoneError):
        async with target.stage_clone(base, request()):
            raise AssertionError("a changed base must not be cloned")
    assert staged_files(shared) == []
    (sentence,) = await make_target(shared).recover(frozenset())
    assert "was changed" in sentence
    assert bases(shared) == []


async def test_changed_base_is_replaced(shared):
    target = make_target(shared)
    base = await make_base(target)
    write(shared / ".lvp/base" / base.name, b"changed")
    again = await make_base(target)
    assert again == base
    volume = await clone(target, again)
    assert first_bytes(Path(volume.path), len(DATA)) == DATA


async def test_base_made_twice_at_once(shared):
    """Two installations that share the folder make the base of one image: both succeed."""
    target = make_target(shared)
    async with target.stage_base(request("raw", len(DATA), "job-slow", 1)) as slower:
        base = await make_base(target)
        write(slower.device.path, DATA)
        await slower.commit(digest())
    assert await target.base(digest(), "raw") == base
    assert (bases(shared), staged_files(shared)) == ([base.name], [])


async def test_other_files_beside_bases_stay(shared):
    target = make_target(shared)
    await make_base(target)
    (shared / ".lvp/base/notes.txt").write_text("mine")
    assert list(await target.recover(frozenset())) == []
    assert (shared / ".lvp/base/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("image_digest", "image_format"), [("sha256:../../x", "raw"), (digest(), "../raw"), ("", "")])
async def test_impossible_base(shared, image_digest, image_format):
    with pytest.raises(InvalidRequestError):
        await make_target(shared).base(image_digest, image_format)


async def test_clone_keeps_owner_and_mode_of_replaced(shared):
    target = make_target(shared)
    base = await make_base(target)
    volume = await clone(target, base)
    Path(volume.path).chmod(0o640)
    os.chown(volume.path, 64055, 64056)
    status = Path((await clone(target, base, job="job-2")).path).stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 64055, 64056)


async def test_kept_clone_is_restored(shared):
    target = make_target(shared, keep_replaced=3600)
    base = await make_base(target)
    old = await clone(target, base)
    write(old.path, b"guest")
    new = await clone(target, base, job="job-2")
    assert first_bytes(Path(new.path), len(DATA)) == DATA
    restored = await target.restore(new.replaced.kept_as, "restore-1")
    assert first_bytes(Path(restored.path), 5) == b"guest"


async def test_clone_of_a_foreign_or_open_volume_name(shared):
    target = make_target(shared)
    base = await make_base(target)
    (shared / "web01.raw").write_bytes(b"theirs".ljust(SIZE, b"\0"))
    volume = await clone(target, base)
    (kept,) = await target.kept()
    assert (volume.replaced.kept_as, kept.owner.value) == (kept.kept_as, "foreign")


@pytest.mark.parametrize("settings", [{"clone": False}, {"preallocate": True}])
async def test_target_that_never_clones(shared, settings):
    base = await make_base(make_target(shared))
    target = make_target(shared, **settings)
    assert type(target) is FileTarget
    (finding,) = [finding for finding in await target.diagnose() if not finding.ok]
    assert f"{next(iter(settings))} = " in finding.what
    assert bases(shared) == [base.name]


async def test_doctor_says_that_volumes_are_cloned(shared):
    target = make_target(shared)
    await make_base(target)
    assert any("1 bases of at most 20" in finding.what for finding in await target.diagnose())
    assert all(finding.ok for finding in await target.diagnose())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_folder_without_copy_on_write(tmp_path, after):
    """libvirt sets this attribute on folders of its pools, perhaps after the first base was made."""
    with mounted("btrfs", tmp_path, 256 * MIB) as mount:
        folder = mount / "images"
        folder.mkdir()
        target = make_target(folder)
        if after:
            base = await make_base(target)
        run("chattr", "+C", *[path for path in [folder, *folder.rglob("*")] if path.is_dir()])
        if not after:
            base = await make_base(target)
            assert "C" in run("lsattr", folder / ".lvp/base" / base.name).split()[0]
        volume = await clone(target, base)
        assert "shared" in run("filefrag", "-v", volume.path)
        write(volume.path, b"guest")
        again = await clone(target, base, "web02", "job-2")
        assert first_bytes(Path(again.path), len(DATA)) == DATA
        await target.aclose()


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "xfs without reflinks"])
async def test_file_system_without_reflinks(tmp_path, kind):
    with a_file_system(tmp_path, kind) as folder:
        target = make_target(folder)
        assert isinstance(target, FileCloneTarget)
        assert "does not support reflinks" in await target.why_copy(request())
        assert not await target.shares_blocks(0)
        assert await target.placement(request()) is Placement.NEW
        assert any("volumes are copied" in finding.what and finding.ok for finding in await target.diagnose())
        assert os.listdir(folder) == ([] if kind != "ext4" else ["lost+found"])  # noqa: PTH208
        await target.aclose()


def a_file_system(tmp_path, kind):
    return mounted(kind, tmp_path, 320 * MIB)


def test_own_bytes_of_many_extents(shared):
    """More extents than one request to the kernel returns, every second one shared."""
    source, copy = shared / "source", shared / "copy"
    count = 1200
    with source.open("wb") as file:
        file.truncate(2 * count * PAGE)  # first, or XFS reserves blocks after the end
        for number in range(count):
            os.pwrite(file.fileno(), b"x" * PAGE, 2 * number * PAGE)
        os.fsync(file.fileno())
    with source.open("r+b") as file:
        with copy.open("wb") as other:
            reflink.clone(file.fileno(), other.fileno())
        for number in range(0, count, 2):
            os.pwrite(file.fileno(), b"y" * PAGE, 2 * number * PAGE)
        os.fsync(file.fileno())
    assert reflink.own_bytes(source) == count // 2 * PAGE
    os.truncate(copy, 0)
    assert reflink.own_bytes(source) == count * PAGE


@pytest.mark.parametrize("way", ["evicted", "deleted"])
async def test_base_goes_right_before_it_is_cloned(shared, monkeypatch, way):
    """Another job evicts the base while it is open, or an administrator deletes it."""
    target = make_target(shared)
    base = await make_base(target)
    share = reflink.clone

    def evict_and_clone(source, fd):
        if way == "deleted":
            shutil.rmtree(shared / ".lvp/base")
        else:
            make_target(shared)._room.keep_bases(0)
        share(source, fd)

    monkeypatch.setattr(reflink, "clone", evict_and_clone)
    if way == "deleted":
        volume = await clone(target, base)
        assert first_bytes(Path(volume.path), len(DATA)) == DATA
        return
    with pytest.raises(BaseGoneError, match="was changed while"):
        await clone(target, base)
    assert (bases(shared), staged_files(shared)) == ([], [])
