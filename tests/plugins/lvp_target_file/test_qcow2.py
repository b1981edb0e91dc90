# ruff: noqa: ASYNC230, ASYNC240 - small files of a test
"""qcow2 volumes, compared with QEMU's own tools: content, tables, sizes, growth, other formats in the same folder."""

import os
import random
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from lvp_target_file import qcow2
from lvp_target_file.folder import ATTRIBUTE
from provisioner.contracts import GIB, MIB, Capacity, Placement, Provenance
from provisioner.contracts.errors import NoSpaceError, ResizeError, TargetError, VolumeExistsError
from tests.plugins.lvp_target_file.qcow2_images import (
    DIGEST,
    IMAGE,
    SIZE,
    bases,
    check,
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

TIB = 1024 * GIB
NOISE = random.Random(1).randbytes(200_000)


def disk(path, size, pieces):
    """Make a raw file with these pieces of data, by their offsets."""
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in pieces.items():
            file.seek(at)
            file.write(data)
    return path


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (SIZE, {}),
        (SIZE, {0: b"x"}),
        (SIZE, {SIZE - 1: b"x"}),
        (SIZE, {65535: NOISE, 4 * MIB: NOISE}),
        (65536, {5: b"x"}),
        (2 * GIB, {512 * MIB - 7: NOISE, 2 * GIB - 5: b"tail!"}),
        (20 * GIB, {at * 97 * MIB + 4096: b"x" * 5000 for at in range(200)}),
    ],
    ids=["empty", "first", "last", "pieces", "one cluster", "borders", "many"],
)
def test_wrap_keeps_content(tmp_path, size, pieces, whole):
    raw, path = disk(tmp_path / "raw", size, pieces), disk(tmp_path / "qcow2", size, pieces)
    fd = os.open(path, os.O_RDWR)
    qcow2.wrap(fd, size, whole=whole)
    os.close(fd)
    check(path)
    found = info(path)
    assert (found["virtual-size"], "backing-filename" in found) == (size, False)
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
    assert path.stat().st_size <= size + qcow2.metadata_bytes(size)
    data = NOISE[: size - size // 2]
    write_inside(path, data, size // 2)  # QEMU puts new clusters into holes
    with raw.open("r+b") as file:
        file.seek(size // 2)
        file.write(data)
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
    check(path)


@pytest.mark.parametrize("size", [4 * TIB, 4 * TIB + 65536, 40 * TIB])
def test_wrap_huge_disk(tmp_path, size):
    """The table of the first level, and that of references, has more than one cluster."""
    try:
        raw, path = (disk(tmp_path / name, size, {0: b"first", size - 5: b"last!"}) for name in ("raw", "qcow2"))
    except OSError:  # ext4 has files of 16 TiB at most
        assert size > 16 * TIB
        return
    with path.open("r+b") as file:
        qcow2.wrap(file.fileno(), size)
    check(path)
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)


def test_wrap_takes_no_more_space(tmp_path):
    raw, path = (disk(tmp_path / name, 10 * GIB, {0: NOISE}) for name in ("raw", "qcow2"))
    with path.open("r+b") as file:
        qcow2.wrap(file.fileno(), 10 * GIB)
        os.fsync(file.fileno())
    # The header's cluster, five tables, the rest of the clusters that have data.
    assert path.stat().st_blocks * 512 <= raw.stat().st_blocks * 512 + 8 * 65536
    assert path.stat().st_blocks * 512 <= len(NOISE) + qcow2.metadata_bytes(10 * GIB)


def test_overlay_is_what_qemu_makes(tmp_path):
    base, ours, theirs = disk(tmp_path / "base", MIB, {0: b"base"}), tmp_path / "ours", tmp_path / "theirs"
    with ours.open("w+b") as file:
        qcow2.make_overlay(file.fileno(), SIZE, str(base), "raw")
    tool("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", base, theirs, SIZE)
    check(ours)
    of_the_file = {"filename", "actual-size", "children"}  # newer versions tell of the file below, too
    found, expected = ({k: v for k, v in info(one).items() if k not in of_the_file} for one in (ours, theirs))
    assert found == expected
    assert expected["backing-filename-format"] == "raw"
    assert content(ours) == content(theirs) == b"base".ljust(SIZE, b"\0")


def test_overlay_of_a_long_path(tmp_path):
    with (tmp_path / "overlay").open("w+b") as file, pytest.raises(TargetError, match="more than 1023 bytes"):
        qcow2.make_overlay(file.fileno(), SIZE, "/" + "x" * 1023, "raw")


async def test_volume_stands_alone(tmp_path):
    target = make_target(tmp_path, clone=False)
    volume = await provision(target, b"data", size=SIZE + 1)
    assert (volume.path, volume.size_bytes) == (str(tmp_path / "web01.qcow2"), SIZE + 65536)
    check(volume.path)
    found = info(volume.path)
    assert (found["virtual-size"], "backing-filename" in found) == (volume.size_bytes, False)
    assert content(volume.path) == b"data".ljust(volume.size_bytes, b"\0")
    assert await target.find("web01") == volume
    assert staged_files(tmp_path) == []


async def test_volume_is_an_overlay(tmp_path):
    target = make_target(tmp_path)
    base = await make_base(target)
    volume = await clone(target, base)
    path = tmp_path / ".lvp/backing" / base.name
    found = info(volume.path)
    assert (found["backing-filename"], found["backing-filename-format"]) == (str(path), "raw")
    assert found["virtual-size"] == volume.size_bytes == SIZE
    check(volume.path)
    assert content(volume.path) == IMAGE.ljust(SIZE, b"\0")
    write_inside(volume.path, b"guest")
    assert path.read_bytes() == IMAGE
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o400, 0o711)
    assert path.parent.parent.stat().st_mode & 0o777 == 0o711
    assert Path(volume.path).stat().st_blocks * 512 < MIB


async def test_clone_takes_constant_space(tmp_path):
    """A new volume has some tables, whatever the size of image and volume."""
    target = make_target(tmp_path, overcommit=True)
    async with target.stage_base(request("raw", 100 * GIB, "job", DIGEST)) as staged:
        await staged.commit(DIGEST)
    volume = await clone(target, await target.base(DIGEST, "raw"), size=200 * GIB)
    assert volume.size_bytes == 200 * GIB
    assert Path(volume.path).stat().st_size <= 5 * 65536


@pytest.mark.parametrize("options", [{}, {"clone": False}], ids=str)
async def test_why_copy_without_reflinks(tmp_path, monkeypatch, options):
    """No reflinks are needed; only too little space is a reason to copy."""
    monkeypatch.setattr("lvp_target_file.reflink.are_supported", lambda _: False)
    target = make_target(tmp_path, **options)
    if options:
        assert not hasattr(target, "why_copy")
        return
    assert await target.why_copy(request()) is None
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda _: Capacity(GIB, 16 * MIB))
    assert await target.why_copy(request(size=8 * MIB), 4 * MIB) is None
    reason = await target.why_copy(request(size=8 * MIB), 9 * MIB)
    assert "that a clone and its base may need" in reason


async def test_placement_counts_tables(tmp_path, monkeypatch):
    target = make_target(tmp_path)
    tables = qcow2.metadata_bytes(SIZE)
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda _: Capacity(GIB, SIZE + tables))
    assert await target.placement(request()) is Placement.NEW
    monkeypatch.setattr("lvp_target_file.folder.Folder.capacity", lambda _: Capacity(GIB, SIZE + tables - 1))
    with pytest.raises(NoSpaceError):
        await target.placement(request())


async def test_replace_in_place(tmp_path, monkeypatch):
    """An overlay is overwritten by a volume that stands alone if there is no room beside it."""
    target = make_target(tmp_path, replace="in-place")
    await clone(target, await make_base(target))
    write_inside(tmp_path / "web01.qcow2", bytes(MIB) + NOISE)
    old = (tmp_path / "web01.qcow2").stat()
    monkeypatch.setattr(
        "lvp_target_file.folder.Folder.capacity",
        lambda _: Capacity(GIB, SIZE + qcow2.metadata_bytes(SIZE) - MIB // 2),
    )
    monkeypatch.setattr("lvp_target_file.backing.BackingFiles.own_bytes", lambda *_: 0)
    assert await target.placement(request(job="job-2")) is Placement.IN_PLACE
    with pytest.raises(NoSpaceError):
        await clone(target, await target.base(DIGEST, "raw"), job="job-2")
    volume = await provision(target, b"new", job="job-2")
    assert Path(volume.path).stat().st_ino == old.st_ino
    assert "backing-filename" not in info(volume.path)
    assert content(volume.path) == b"new".ljust(SIZE, b"\0")


async def test_size_of_old_volume_is_the_disk(tmp_path):
    """The file of an overlay is small; its disk decides whether it may be replaced."""
    target = make_target(tmp_path)
    base = await make_base(target)
    await clone(target, base)
    with pytest.raises(VolumeExistsError, match=r"has 0.01 GiB, more than 5% off the requested 0.02 GiB"):
        await target.placement(request(size=2 * SIZE))
    assert await target.placement(request(size=SIZE)) is Placement.SWAP


async def test_replaced_overlay_is_kept_and_restored(tmp_path):
    target = make_target(tmp_path, keep_replaced=3600.0)
    base = await make_base(target)
    first = await clone(target, base)
    write_inside(first.path, b"guest")
    second = await clone(target, base, job="job-2")
    (kept,) = await target.kept()
    assert (kept.size_bytes, kept.kept_as) == (SIZE, second.replaced.kept_as)
    restored = await target.restore(kept.kept_as, "restore-1")
    assert restored == first
    assert content(restored.path).startswith(b"guest")
    check(restored.path)


@pytest.mark.parametrize("at", [0, 2**21 + 1, 2**62, 2**63 - 1, 2**64 - 1])
def test_header_with_a_name_elsewhere(tmp_path, at):
    """QEMU opens no such file; it must not break a search for overlays either."""
    path = tmp_path / "foreign"
    path.write_bytes(struct.pack(">4sIQIIQ", b"QFI\xfb", 3, at, 2**32 - 1, 16, SIZE).ljust(104, b"\0"))
    header = qcow2.header_of(path)
    assert (header.size, header.backing) == (SIZE, "")


@pytest.mark.parametrize("data", [b"", b"QFI", b"QFI\xfb\0\0\0\1" + bytes(100), b"x" * 200])
def test_file_that_is_no_image(tmp_path, data):
    (tmp_path / "foreign").write_bytes(data)
    assert qcow2.header_of(tmp_path / "foreign") is None
    assert qcow2.header_of(tmp_path / "missing") is None
    assert qcow2.header_of(tmp_path) is None
    os.mkfifo(tmp_path / "fifo")
    assert qcow2.header_of(tmp_path / "fifo") is None


# --- growing ---


async def test_grow_overlay(tmp_path):
    target = make_target(tmp_path)
    volume = await clone(target, await make_base(target))
    write_inside(volume.path, b"guest", SIZE - 5)
    before = Path(volume.path).read_bytes()
    grown = await target.resize("web01", 2 * SIZE + 1)
    assert grown.size_bytes == 2 * SIZE + 65536
    assert content(volume.path) == (IMAGE.ljust(SIZE - 5, b"\0") + b"guest").ljust(grown.size_bytes, b"\0")
    check(volume.path)
    after = Path(volume.path).read_bytes()
    assert after == before[:24] + struct.pack(">Q", grown.size_bytes) + before[32:]


async def test_grow_far(tmp_path):
    target = make_target(tmp_path, overcommit=True)
    volume = await provision(target, b"data")
    await target.resize("web01", 4 * TIB)
    write_inside(volume.path, NOISE, 4 * TIB - len(NOISE))
    check(volume.path)
    with pytest.raises(ResizeError, match="no room for more than 4096 GiB"):
        await target.resize("web01", 5 * TIB)
    assert info(volume.path)["virtual-size"] == 4 * TIB


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["qemu-img", "snapshot", "-c", "one"], "internal snapshots or bitmaps"),
        (["qemu-img", "bitmap", "--add", "-f", "qcow2"], "internal snapshots or bitmaps"),
        (["qemu-img", "rebase", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/hostname"], "is no base of this target"),
    ],
    ids=["snapshot", "bitmap", "backing file"],
)
async def test_grow_refused(tmp_path, change, words):
    target = make_target(tmp_path)
    volume = await provision(target, b"data")
    tool(*change, volume.path, *(["bitmap0"] if "bitmap" in change else []))
    before = Path(volume.path).read_bytes()
    with pytest.raises(ResizeError, match=words):
        await target.resize("web01", 2 * SIZE)
    assert Path(volume.path).read_bytes() == before


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (4, struct.pack(">I", 4), "features that are not known"),
        (20, struct.pack(">I", 60), "features that are not known"),
        (32, struct.pack(">I", 1), "features that are not known"),
        (72, struct.pack(">Q", 1), "features that are not known"),
        (65536 + 0, b"", None),
    ],
    ids=["version", "cluster bits", "encryption", "dirty", "sound"],
)
async def test_grow_unknown_header(tmp_path, at, value, words):
    target = make_target(tmp_path)
    volume = await provision(target, b"data")
    with Path(volume.path).open("r+b") as file:
        file.seek(at)
        file.write(value)
    if words is None:
        assert (await target.resize("web01", 2 * SIZE)).size_bytes == 2 * SIZE
        return
    with pytest.raises(ResizeError, match=words):
        await target.resize("web01", 2 * SIZE)


async def test_grow_over_data_after_the_end(tmp_path):
    """QEMU keeps the state of a machine there; it must not become a part of the disk."""
    target = make_target(tmp_path, overcommit=True)
    volume = await provision(target, b"data")
    await target.resize("web01", GIB)
    write_inside(volume.path, b"old", GIB - 4096)
    with Path(volume.path).open("r+b") as file:
        file.seek(24)
        file.write(struct.pack(">Q", SIZE))
    with pytest.raises(ResizeError, match="data after its end"):
        await target.resize("web01", GIB)


# --- other formats in the folder ---


async def test_raw_volume_is_not_seen(tmp_path):
    raw = await provision(make_target(tmp_path, format="raw"), b"raw")
    target = make_target(tmp_path)
    assert await target.find("web01") is None
    assert list(await target.list()) == []
    volume = await provision(target, b"new", job="job-2")
    assert Path(raw.path).read_bytes() == b"raw".ljust(SIZE, b"\0")
    assert [one.path for one in await target.list()] == [volume.path]
    assert [one.path for one in await make_target(tmp_path, format="raw").list()] == [raw.path]


async def test_renamed_raw_volume_is_foreign(tmp_path):
    """Its bytes are the guest's, and so would be its header."""
    raw = await provision(make_target(tmp_path, format="raw"), b"raw")
    Path(raw.path).rename(tmp_path / "web01.qcow2")
    found = await make_target(tmp_path).find("web01")
    assert (found.provenance, found.size_bytes) == (None, SIZE)
    with pytest.raises(VolumeExistsError, match="is no qcow2 image"):
        await make_target(tmp_path).adopt("web01", Provenance("adopt-1", "", None, 0.0))


async def test_kept_raw_volume_is_not_restored(tmp_path):
    raw = make_target(tmp_path, format="raw", keep_replaced=3600.0)
    await provision(raw, b"first")
    await provision(raw, b"second", job="job-2")
    target = make_target(tmp_path, keep_replaced=3600.0)
    (kept,) = await target.kept()
    assert kept.size_bytes == SIZE
    assert kept.provenance is not None
    with pytest.raises(VolumeExistsError, match="is a raw file, and the target makes qcow2 files"):
        await target.restore(kept.kept_as, "restore-1")
    assert list(await target.kept()) == [kept]
    (tmp_path / "web01.raw").unlink()
    assert len(await raw.kept()) == 1
    await target.remove_kept(kept.kept_as)
    assert list(await raw.kept()) == []


async def test_copied_volume_is_foreign(tmp_path):
    target = make_target(tmp_path)
    volume = await provision(target, b"data")
    shutil.copy2(volume.path, tmp_path / "web02.qcow2")
    os.setxattr(tmp_path / "web02.qcow2", ATTRIBUTE, os.getxattr(volume.path, ATTRIBUTE))
    assert (await target.find("web02")).provenance is None
    assert list(await target.list()) == [volume]


async def test_raw_volumes_are_marked_as_before(tmp_path):
    """An older version of the service still knows them."""
    volume = await provision(make_target(tmp_path, format="raw"), b"data")
    assert b"format" not in os.getxattr(volume.path, ATTRIBUTE)
    assert not (tmp_path / ".lvp/changes.lock").exists()


async def test_foreign_file_has_its_own_size(tmp_path):
    (tmp_path / "web01.qcow2").write_bytes(b"QFI\xfb")
    (tmp_path / "web02.qcow2").mkdir()
    target = make_target(tmp_path)
    assert (await target.find("web01")).size_bytes == 4
    assert await target.find("web02") is None


async def test_bases_of_other_digests(tmp_path):
    target = make_target(tmp_path)
    one = await make_base(target)
    two = await make_base(target, b"two".ljust(MIB), "sha256:" + "cd" * 32)
    assert bases(tmp_path) == sorted([one.name, two.name])
    volume = await clone(target, two)
    assert content(volume.path).startswith(b"two")


async def test_base_of_odd_size(tmp_path):
    """A raw image need not end at a cluster; the volume does, with zeros."""
    target = make_target(tmp_path)
    base = await make_base(target, b"x" * (MIB + 512))
    volume = await clone(target, replace(base), size=MIB + 512)
    assert volume.size_bytes == MIB + 65536
    assert content(volume.path) == (b"x" * (MIB + 512)).ljust(volume.size_bytes, b"\0")


async def test_write_of_staged_file_is_raw(tmp_path):
    target = make_target(tmp_path)
    async with target.stage(request(), verified=True) as staged:
        assert staged.device.reads_zero
        write(staged.device.path, b"data", SIZE - 4)
        assert Path(staged.device.path).read_bytes() == b"data".rjust(SIZE, b"\0")
