# ruff: noqa: ASYNC220 - small files of a test
"""A base stays as long as something may need it, whatever else is lost."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from lvp_target_file import qcow2
from lvp_target_file.backing import BackingFiles
from lvp_target_file.folder import ATTRIBUTE
from lvp_target_file.placement import needed_bytes
from provisioner.contracts import GIB, MIB, Capacity
from provisioner.contracts.errors import BaseExistsError, BaseGoneError, NoSpaceError, TargetUnavailableError
from tests.plugins.lvp_target_file.qcow2_images import (
    DIGEST,
    IMAGE,
    SIZE,
    bases,
    clone,
    content,
    info,
    make_base,
    make_target,
    provision,
    request,
    staged_files,
    tool,
    write,
    write_inside,
)

OTHER = "sha256:" + "cd" * 32


def evict_all(target):
    """Remove every base that may go, as a job in need of space does."""
    target._room.keep_bases(0)


async def test_base_without_overlays_is_evicted(tmp_path):
    target = make_target(tmp_path)
    await make_base(target)
    assert target._bases.own_bytes() >= MIB
    evict_all(target)
    assert bases(tmp_path) == []
    assert await target.base(DIGEST, "raw") is None


async def do_nothing(folder, target, path):
    pass


async def lose_attributes(folder, target, path):
    os.removexattr(path, ATTRIBUTE)


async def rename(folder, target, path):
    path.rename(folder / "some.img")


async def move_to_subfolder(folder, target, path):
    (folder / "deep/er").mkdir(parents=True)
    path.rename(folder / "deep/er/disk")


async def replace_and_keep(folder, target, path):
    await provision(target, b"new", job="job-2")
    assert len(await target.kept()) == 1


async def replace_keep_and_lose_attributes(folder, target, path):
    await provision(target, b"new", job="job-2")
    (kept,) = (folder / ".lvp/kept").iterdir()
    for name in os.listxattr(kept):
        os.removexattr(kept, name)


async def remove_but_copy(folder, target, path):
    shutil.copy(path, folder / "backup")
    await target.remove("web01")


async def rebase_elsewhere(folder, target, path):
    """The same base by another path, as on a host that mounts the folder elsewhere."""
    (base,) = (folder / ".lvp/backing").iterdir()
    tool("qemu-img", "rebase", "-f", "qcow2", "-u", "-F", "raw", "-b", f"/mnt/elsewhere/{base.name}", path)


async def rebase_as_json(folder, target, path):
    (base,) = (folder / ".lvp/backing").iterdir()
    backing = f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}'
    tool("qemu-img", "rebase", "-f", "qcow2", "-u", "-F", "raw", "-b", backing, path)


async def leave_a_link(folder, target, path):
    os.removexattr(path, ATTRIBUTE)
    path.rename(folder / "link")
    path.symlink_to(folder / "link")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        do_nothing,
        lose_attributes,
        rename,
        move_to_subfolder,
        replace_and_keep,
        replace_keep_and_lose_attributes,
        remove_but_copy,
        rebase_elsewhere,
        rebase_as_json,
        leave_a_link,
    ],
)
async def test_base_with_an_overlay_stays(tmp_path, change, restart):
    options = {"keep_replaced": 3600.0, "remove_kept": "never"}
    target = make_target(tmp_path, **options)
    base = await make_base(target)
    made = await clone(target, base)
    await change(tmp_path, target, Path(made.path))
    if restart:
        await target.aclose()
        target = make_target(tmp_path, **options)
        await target.recover(frozenset())
        await target.take_over()
    assert target._bases.own_bytes() == 0
    evict_all(target)
    with pytest.raises(NoSpaceError):
        target._room.make(2**60)
    assert bases(tmp_path) == [base.name]
    assert (tmp_path / ".lvp/backing" / base.name).read_bytes() == IMAGE


async def test_base_of_a_staged_overlay_stays(tmp_path):
    target = make_target(tmp_path)
    base = await make_base(target)
    async with target.stage_clone(base, request()) as staged:
        evict_all(target)
        made = await staged.commit(DIGEST)
    assert content(made.path) == IMAGE.ljust(SIZE, b"\0")
    await target.remove("web01")
    evict_all(target)
    assert bases(tmp_path) == []


async def test_open_base_stays(tmp_path):
    """A guest runs whose volume was moved out of the folder."""
    target = make_target(tmp_path)
    base = await make_base(target)
    with (tmp_path / ".lvp/backing" / base.name).open("rb") as file:
        child = subprocess.Popen(["tail", "-f", "/dev/null"], stdin=file)
    try:
        evict_all(target)
        assert bases(tmp_path) == [base.name]
    finally:
        child.kill()
        child.wait()
    evict_all(target)
    assert bases(tmp_path) == []


async def test_folder_that_cannot_be_searched(tmp_path, monkeypatch):
    """An overlay may be in what cannot be read."""
    target = make_target(tmp_path)
    base = await make_base(target)
    (tmp_path / "web02.qcow2").write_bytes(b"x")

    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(qcow2, "header_of", fail)
    evict_all(target)
    assert bases(tmp_path) == [base.name]
    monkeypatch.undo()
    evict_all(target)
    assert bases(tmp_path) == []


async def test_raw_target_leaves_backing_files(tmp_path):
    """After a change of the setting, the qcow2 volumes are still there."""
    target = make_target(tmp_path)
    base = await make_base(target)
    made = await clone(target, base)
    await target.aclose()
    raw = make_target(tmp_path, format="raw")
    await raw.recover(frozenset())
    evict_all(raw)
    with pytest.raises(NoSpaceError):
        raw._room.make(2**60)
    assert await raw.base(DIGEST, "raw") is None
    assert content(made.path) == IMAGE.ljust(SIZE, b"\0")
    assert bases(tmp_path) == [base.name]


async def test_unused_bases_go_first(tmp_path):
    """Bases that stay count too, so that there are no more than wanted if possible."""
    target = make_target(tmp_path, max_bases=2)
    base = await make_base(target)
    await clone(target, base)
    for number in range(3):
        await make_base(target, digest=f"sha256:{number:064x}")
        assert len(bases(tmp_path)) == 2
        assert base.name in bases(tmp_path)


async def test_more_bases_than_wanted(tmp_path):
    target = make_target(tmp_path, max_bases=1)
    for number in range(3):
        base = await make_base(target, digest=f"sha256:{number:064x}")
        await clone(target, base, f"web{number}")
    assert len(bases(tmp_path)) == 3


async def test_space_of_bases_that_stay_is_not_offered(tmp_path, monkeypatch):
    target = make_target(tmp_path)
    base = await make_base(target)
    await make_base(target, digest=OTHER)
    needed = needed_bytes(request(), target._settings)
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda _: Capacity(GIB, needed - MIB))
    assert (await target.placement(request())) == "new"
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda _: Capacity(GIB, needed - 2 * MIB))
    assert (await target.placement(request())) == "new"
    for number, one in enumerate([base, await target.base(OTHER, "raw")]):
        monkeypatch.undo()
        await clone(target, one, f"other{number}")
        monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda _: Capacity(GIB, needed - 2 * MIB))
        with pytest.raises(NoSpaceError):
            await target.placement(request())


# --- bases that were changed or are in the way ---


def commit_into_base(path):
    """Write a volume's data to its base, which is a mistake."""
    base = Path(info(path)["backing-filename"])
    base.chmod(0o600)
    write_inside(path, b"guest")
    tool("qemu-img", "commit", "-f", "qcow2", path)
    return base


async def test_changed_base_stays_for_its_overlays(tmp_path):
    target = make_target(tmp_path)
    made = await clone(target, await make_base(target))
    base = commit_into_base(made.path)
    target = make_target(tmp_path)
    assert list(await target.recover(frozenset())) == []
    assert base.read_bytes().startswith(b"guest")
    assert await target.base(DIGEST, "raw") is None
    with pytest.raises(BaseGoneError, match="was changed by another program, and volumes refer to it"):
        await make_base(target)
    evict_all(target)
    assert base.read_bytes().startswith(b"guest")
    assert content(made.path).startswith(b"guest")
    assert staged_files(tmp_path) == []
    (finding,) = [found for found in await target.diagnose() if found.ok is False]
    assert str(made.path) in finding.what
    assert base.name in finding.what
    await target.remove("web01")
    (done,) = await target.recover(frozenset())
    assert done == f"removed the base {base.name}: it was changed after it was made"
    await make_base(target)


async def test_missing_base_is_reported(tmp_path):
    target = make_target(tmp_path)
    base = await make_base(target)
    made = await clone(target, base)
    assert all(found.ok for found in await target.diagnose())
    (tmp_path / ".lvp/backing" / base.name).unlink()
    (finding,) = [found for found in await target.diagnose() if found.ok is False]
    assert "1 qcow2 files refer to bases that are missing or were changed" in finding.what
    assert made.path in finding.what


async def test_base_is_made_twice(tmp_path):
    """The second one is dropped: volumes may refer to the first by now."""
    target = make_target(tmp_path)
    async with target.stage_base(request("raw", MIB, "job-2", DIGEST)) as staged:
        write(staged.device.path, b"other")
        base = await make_base(target)
        with pytest.raises(BaseExistsError):
            await staged.commit(DIGEST)
    assert (tmp_path / ".lvp/backing" / base.name).read_bytes() == IMAGE
    assert staged_files(tmp_path) == []


async def test_base_evicted_before_the_clone(tmp_path):
    target = make_target(tmp_path)
    base = await make_base(target)
    evict_all(target)
    with pytest.raises(BaseGoneError):
        await clone(target, base)
    assert staged_files(tmp_path) == []
    assert list(await target.recover(frozenset())) == []


async def test_left_over_bases_without_clones(tmp_path):
    """The doctor names only bases that may be removed."""
    target = make_target(tmp_path)
    await clone(target, await make_base(target))
    other = await make_base(target, digest=OTHER)
    (finding,) = [found for found in await make_target(tmp_path, clone=False).diagnose() if not found.ok]
    assert finding.fix == f"remove {tmp_path / '.lvp/backing' / other.name}"


# --- eviction and clones at the same time ---


async def test_eviction_races_with_clone(tmp_path, monkeypatch):
    """An overlay is made while another thread searches for overlays: one of them sees the other."""
    target = make_target(tmp_path)
    base = await make_base(target)
    make, thread = qcow2.make_overlay, threading.Thread(target=evict_all, args=[target])

    def evict_meanwhile(*args):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive(), "the eviction did not wait"
        make(*args)

    monkeypatch.setattr(qcow2, "make_overlay", evict_meanwhile)
    made = await clone(target, base)
    thread.join()
    assert content(made.path) == IMAGE.ljust(SIZE, b"\0")


async def test_eviction_races_with_publish(tmp_path, monkeypatch):
    """A file that would move from the stage to its name during the search, and be missed, moves after it."""
    target = make_target(tmp_path)
    base = await make_base(target)
    references, threads = BackingFiles.references, []

    def publish_meanwhile(bases):
        if evicting and not threads:
            threads.append(threading.Thread(target=target.commit, args=[wanted, wanted.provenance, None]))
            threads[0].start()
            threads[0].join(0.2)
            assert threads[0].is_alive(), "the commit did not wait"
        return references(bases)

    wanted, evicting = request(digest=DIGEST), []
    monkeypatch.setattr(target, "_complete", lambda *_: None)  # it is complete
    monkeypatch.setattr(BackingFiles, "references", publish_meanwhile)
    monkeypatch.setattr(BackingFiles, "least_used_first", lambda self, _=None: list(self._files()))
    async with target.stage_clone(base, wanted):
        evicting.append(True)
        evict_all(target)
        threads[0].join()
    assert bases(tmp_path) == [base.name]
    assert content(tmp_path / "web01.qcow2") == IMAGE.ljust(SIZE, b"\0")


async def test_search_is_no_use_of_a_volume(tmp_path, monkeypatch):
    """Lists of volumes open each file; a swap or a removal must not take that for a guest."""
    target = make_target(tmp_path)
    base = await make_base(target)
    await clone(target, base)
    stop, rounds = threading.Event(), []

    def look():
        while not stop.is_set():
            target._folder.own()
            target._bases.used()
            rounds.append(1)

    def used():
        with target._folder.looking():
            return BackingFiles.references(target._bases)

    monkeypatch.setattr(target._bases, "references", used)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number in range(20):
            await clone(target, base, job=f"job-{number}")
        await target.remove("web01")
    finally:
        stop.set()
        thread.join()
    assert len(rounds) > 1


async def test_lock_that_is_never_released(tmp_path, monkeypatch):
    target, other = make_target(tmp_path), make_target(tmp_path)
    await target.recover(frozenset())
    monkeypatch.setattr("lvp_target_file.folder_lock._TIMEOUT", 0.05)
    with target._folder.changing():
        with target._folder.looking(), target._folder.changing():  # the same thread may go on
            pass
        with pytest.raises(TargetUnavailableError, match="stays locked"):
            await other.find("web01")
        with pytest.raises(TargetUnavailableError, match="stays locked"):
            await other.recover(frozenset())
    assert await other.find("web01") is None
