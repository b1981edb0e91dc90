# ruff: noqa: ASYNC220, ASYNC230, PT012 - tests wait for tools and hold devices open
"""The target ``lvm`` on real volumes: content, replacement, free space, holders, wiping."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from provisioner.contracts import Placement
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    RollbackError,
    TargetError,
    TargetUnavailableError,
    VolumeExistsError,
    VolumeInUseError,
)
from tests.guest import disks
from tests.guest.lvm import harness
from tests.guest.lvm.copying import copy, fill, make_images

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = harness.MIB


@pytest.mark.parametrize("suffix", ["raw", "qcow2"])
async def test_stage_zeroes_holes_and_the_tail(tiny: str, tmp_path: Path, suffix: str) -> None:
    """The extents hold a previous owner's bytes; the volume is the image and zeros."""
    raw, qcow2 = make_images(tmp_path)
    harness.fill_with_pattern(tiny)
    async with harness.plain_target(tiny).stage(harness.request(size=40 * MIB), verified=True) as staged:
        assert not staged.device.reads_zero
        # Without the pattern on the disk, this test could not fail.
        assert harness.has_pattern(staged.device.path)
        await copy(raw if suffix == "raw" else qcow2, staged.device, raw.stat().st_size)
        volume = await staged.commit(harness.DIGEST)
    assert harness.difference(volume.path, raw.read_bytes().ljust(40 * MIB, b"\0")) == ""


async def test_stage_with_stale_data_keep(tiny: str, tmp_path: Path) -> None:
    raw, _ = make_images(tmp_path)
    harness.fill_with_pattern(tiny)
    target = harness.plain_target(tiny, stale_data="keep")
    async with target.stage(harness.request(size=40 * MIB), verified=True) as staged:
        assert not staged.device.zero_tail
        await copy(raw, staged.device)
        volume = await staged.commit(harness.DIGEST)
    rest = 40 * MIB - raw.stat().st_size
    assert harness.difference(volume.path, raw.read_bytes() + b"\xa5" * rest) == ""


async def test_stage_with_stale_data_discard(tiny: str) -> None:
    target = harness.plain_target(tiny, stale_data="discard")
    async with target.stage(harness.request(), verified=True) as staged:
        assert (staged.device.reads_zero, staged.device.zero_tail) == (False, True)
        await fill(staged, b"new")
    await target.remove("web01")
    assert harness.volumes(tiny) == {}


async def test_stage_on_4096_byte_sectors(sectors: str, tmp_path: Path) -> None:
    raw, _ = make_images(tmp_path, 20 * MIB + 4096)
    async with harness.plain_target(sectors).stage(harness.request(size=40 * MIB), verified=True) as staged:
        await copy(raw, staged.device)
        volume = await staged.commit(harness.DIGEST)
    assert harness.difference(volume.path, raw.read_bytes().ljust(40 * MIB, b"\0")) == ""


async def test_list_returns_the_provenance(plain: str) -> None:
    request = harness.request()
    async with harness.plain_target(plain).stage(request, verified=True) as staged:
        await fill(staged, b"new")
    harness.lvm("lvchange", "--addtag", "backup", f"{plain}/web01")
    harness.lvm("lvcreate", "--yes", "-L", "32m", "-n", "foreign", plain)
    (volume,) = await harness.plain_target(plain).list()
    assert volume.provenance is not None
    assert volume.provenance.image_url == request.provenance.image_url
    assert volume.provenance.created_at == request.provenance.created_at
    assert volume.provenance.image_digest == harness.DIGEST
    foreign = await harness.plain_target(plain).find("foreign")
    assert foreign is not None
    assert foreign.provenance is None
    with pytest.raises(NotFoundError):
        await harness.plain_target(plain).remove("foreign")


async def test_replace_without_room_for_a_second(tiny: str) -> None:
    harness.lvm("lvcreate", "--yes", "-L", "160m", "-n", "web01", tiny)
    harness.write(f"/dev/{tiny}/web01", b"old")
    request = harness.request(size=160 * MIB)
    with pytest.raises(NoSpaceError, match="GiB free"):
        await harness.plain_target(tiny).placement(request)
    target = harness.plain_target(tiny, replace="in-place", foreign="overwrite")
    assert await target.placement(request) is Placement.IN_PLACE
    with pytest.raises(VolumeExistsError, match="verified"):
        async with target.stage(request, verified=False):
            raise AssertionError("an image that was not verified must not be written over a volume")
    assert harness.head(f"/dev/{tiny}/web01", 3) == b"old"
    uuid = harness.volumes(tiny)["web01"]["lv_uuid"]
    async with target.stage(request, verified=True) as staged:
        assert await target.find("web01") is None
        volume = await fill(staged, b"new")
    assert harness.head(volume.path, 3) == b"new"
    assert {row["lv_uuid"] for row in harness.volumes(tiny).values()} == {uuid}
    assert list(await target.list()) == [volume]


async def test_in_place_restores_an_untouched_volume(tiny: str) -> None:
    harness.lvm("lvcreate", "--yes", "-L", "160m", "--addtag", "customer", "-n", "web01", tiny)
    harness.write(f"/dev/{tiny}/web01", b"old")
    before = harness.volumes(tiny)
    target = harness.plain_target(tiny, replace="in-place", foreign="overwrite")
    with pytest.raises(ZeroDivisionError):
        async with target.stage(harness.request(size=160 * MIB), verified=True):
            raise ZeroDivisionError
    assert harness.volumes(tiny) == before
    assert harness.head(f"/dev/{tiny}/web01", 3) == b"old"


async def test_in_place_removes_a_half_written_volume(tiny: str) -> None:
    harness.lvm("lvcreate", "--yes", "-L", "160m", "-n", "web01", tiny)
    target = harness.plain_target(tiny, replace="in-place", foreign="overwrite")
    with pytest.raises(ZeroDivisionError):
        async with target.stage(harness.request(size=160 * MIB), verified=True) as staged:
            harness.write(staged.device.path, b"half")
            raise ZeroDivisionError
    assert harness.volumes(tiny) == {}


async def test_a_volume_in_use_is_refused(plain: str, tmp_path: Path) -> None:
    """It is open in a process, under device-mapper or mounted: before staging, before the commit, and at removal."""
    target = harness.plain_target(plain)
    async with target.stage(harness.request(), verified=True) as staged:
        harness.run("mkfs.ext4", "-q", staged.device.path)
        volume = await staged.commit(harness.DIGEST)
    request = harness.request(job="job-2")

    async def is_refused(holder: str) -> None:
        for call in (target.placement(request), target.remove("web01")):
            with pytest.raises(VolumeInUseError, match=holder):
                await call
        with pytest.raises(VolumeInUseError, match=holder):
            async with target.stage(request, verified=True):
                raise AssertionError("nothing may be staged over a volume in use")

    digest = harness.run("sha256sum", volume.path)
    with Path(volume.path).open("rb") as file:
        child = subprocess.Popen(["sleep", "1000"], stdin=file)
    await is_refused(rf"process sleep \({child.pid}\)")
    child.kill()
    child.wait()
    sectors = harness.run("blockdev", "--getsz", volume.path)
    harness.run("dmsetup", "create", "over", "--table", f"0 {sectors} linear {volume.path} 0")
    await is_refused("under the device over")
    harness.run("dmsetup", "remove", "--retry", "over")
    assert harness.run("sha256sum", volume.path) == digest
    async with target.stage(request, verified=True) as staged:
        harness.run("mount", "-o", "ro", volume.path, str(tmp_path))
        with pytest.raises(VolumeInUseError, match=f"mounted on {tmp_path}"):
            await staged.commit(harness.DIGEST)
        await is_refused(f"mounted on {tmp_path}")
    harness.run("umount", str(tmp_path))
    assert harness.run("sha256sum", volume.path) == digest
    assert list(await target.list()) == [volume]


async def test_a_second_installation_is_refused(plain: str, tmp_path: Path) -> None:
    """By the lock while the first one runs, and by the owner tags of its staged volumes after that."""
    first = harness.plain_target(plain)
    async with first.stage(harness.request(), verified=True) as staged:
        second = harness.plain_target(plain, tmp_path)
        with pytest.raises(TargetUnavailableError, match="another installation"):
            await second.recover(frozenset())
        await first.aclose()
        (sentence,) = await second.recover(frozenset())
        assert "left lvp.stage." in sentence
        assert Path(staged.device.path).name in harness.volumes(plain)
        assert any("--take-over" in finding.fix for finding in await second.diagnose() if not finding.ok)
        await second.aclose()
        await fill(staged, b"new")
    assert [volume.name for volume in await first.list()] == ["web01"]
    await first.aclose()


async def test_placement_refuses_with_the_reason(plain: str) -> None:
    target = harness.plain_target(plain)
    harness.lvm("lvcreate", "--yes", "-L", "32m", "-n", "origin", plain)
    harness.lvm("lvcreate", "--yes", "-s", "-L", "8m", "-n", "cow", f"{plain}/origin")
    harness.lvm("lvcreate", "--yes", "-L", "32m", "-n", "asleep", plain)
    harness.lvm("lvchange", "-an", f"{plain}/asleep")
    harness.lvm("lvcreate", "--yes", "-L", "64m", "-n", "large", plain)
    harness.lvm("lvcreate", "--yes", "-L", "32m", "-pr", "-n", "frozen", plain)
    harness.lvm("lvcreate", "--yes", "--type", "thin-pool", "-L", "32m", "-n", "pooled", plain)
    for name, why in {
        "origin": r"has snapshots or is a snapshot \(cow\)", "cow": "snapshot", "asleep": "not active",
        "large": "more than 5%", "frozen": "read-only", "pooled": "is a pool",
    }.items():  # fmt: skip
        with pytest.raises(VolumeExistsError, match=why):
            await target.placement(harness.request(name))
    harness.lvm("lvremove", "--yes", f"{plain}/pooled")


async def test_placement_with_only_own(plain: str) -> None:
    harness.lvm("lvcreate", "--yes", "-L", "32m", "-n", "web01", plain)
    with pytest.raises(VolumeExistsError, match="only_own"):
        await harness.plain_target(plain, only_own=True).placement(harness.request())
    async with harness.plain_target(plain).stage(harness.request(), verified=True) as staged:
        await fill(staged, b"new")
    assert await harness.plain_target(plain, only_own=True).placement(harness.request()) is Placement.SWAP


async def test_commit_when_the_name_was_taken(plain: str) -> None:
    target = harness.plain_target(plain)
    async with target.stage(harness.request(), verified=True) as staged:
        harness.lvm("lvcreate", "--yes", "-L", "32m", "-n", "web01", plain)
        with pytest.raises(VolumeExistsError):
            await staged.commit(harness.DIGEST)
    assert list(harness.volumes(plain)) == ["web01"]
    assert (await target.find("web01")) is not None
    assert list(await target.list()) == []


async def test_remove_wipes_the_volume(tiny: str) -> None:
    target = harness.plain_target(tiny)
    async with target.stage(harness.request(), verified=True) as staged:
        await fill(staged, b"\x5c" * 32 * MIB)
    await target.remove("web01")
    harness.lvm("lvcreate", "--yes", "-Wn", "-Zn", "-l", "100%FREE", "-n", "all", tiny)
    assert not harness.has_pattern(f"/dev/{tiny}/all", b"\x5c")


async def test_swap_wipes_the_old_volume(tiny: str) -> None:
    target = harness.plain_target(tiny)
    for byte in (b"\x5c", b"\x6d"):
        async with target.stage(harness.request(), verified=True) as staged:
            await fill(staged, byte * 32 * MIB)
    harness.lvm("lvcreate", "--yes", "-Wn", "-Zn", "-l", "100%FREE", "-n", "all", tiny)
    assert not harness.has_pattern(f"/dev/{tiny}/all", b"\x5c")
    assert harness.has_pattern(f"/dev/{tiny}/web01", b"\x6d")


async def test_remove_refuses_a_volume_with_a_snapshot(plain: str) -> None:
    target = harness.plain_target(plain)
    async with target.stage(harness.request(), verified=True) as staged:
        await fill(staged, b"new")
    harness.lvm("lvcreate", "--yes", "-s", "-L", "8m", "-n", "backup", f"{plain}/web01")
    with pytest.raises(VolumeInUseError, match="backup"):
        await target.remove("web01")
    assert sorted(harness.volumes(plain)) == ["backup", "web01"]


async def test_a_missing_group_is_unavailable() -> None:
    target = harness.plain_target("nosuch")
    for call in (target.find("web01"), target.list(), target.capacity(), target.recover(frozenset())):
        with pytest.raises(TargetUnavailableError, match="nosuch"):
            await call
    findings = await target.diagnose()
    assert [finding.fix for finding in findings if not finding.ok and "nosuch" in finding.what]


async def test_change_waits_for_lvms_lock(plain: str) -> None:
    target = harness.plain_target(plain)
    async with trio.open_nursery() as nursery:
        lock = subprocess.Popen(["flock", f"/run/lock/lvm/V_{plain}", "sleep", "3"])
        await trio.to_thread.run_sync(_until_locked, f"/run/lock/lvm/V_{plain}")
        nursery.start_soon(target.lvm.change, "lvcreate", "-L", "8m", "-n", "waited", plain)
    lock.wait()
    assert "waited" in harness.volumes(plain)
    hasty = harness.plain_target(plain, lock_patience=0)
    with subprocess.Popen(["flock", f"/run/lock/lvm/V_{plain}", "sleep", "1000"]) as holder:
        await trio.to_thread.run_sync(_until_locked, f"/run/lock/lvm/V_{plain}")
        with pytest.raises(TargetUnavailableError, match="lock"):
            await hasty.lvm.change("lvcreate", "-L", "8m", "-n", "refused", plain)
        harness.run("pkill", "-P", str(holder.pid))


def _until_locked(path: str) -> None:
    while subprocess.run(["flock", "-n", path, "true"], check=False).returncode == 0:
        pass


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


async def test_a_failing_disk_and_recovery(tmp_path: Path) -> None:
    """With dm-error below the group, the rollback cannot write metadata either. Recovery cleans up later."""
    disk = disks.disk("fault")
    # Skip the start of the disk: otherwise LVM would see one physical volume on two devices.
    sectors = int(harness.run("blockdev", "--getsz", disk)) - 8192
    good, bad = f"0 {sectors} linear {disk} 8192", f"0 {sectors} error"
    harness.run("dmsetup", "create", "below", "--table", good)
    harness.make_group("lab-fault", "/dev/mapper/below")

    def load(table: str) -> None:
        for words in (["suspend", "--noflush", "--nolockfs"], ["load", "--table", table], ["resume"]):
            harness.run("dmsetup", words[0], *words[1:], "below")

    try:
        target = harness.plain_target("lab-fault", report_timeout=20, change_timeout=20)
        with pytest.raises(RollbackError) as caught:
            async with target.stage(harness.request(), verified=True) as staged:
                load(bad)
                harness.write(staged.device.path, b"new")
        assert any(isinstance(error, OSError) for error in _chain(caught.value)), "the cause must not be lost"
        with pytest.raises(TargetError):
            await target.list()
        load(good)
        assert len(await target.recover(frozenset())) == 1
        assert harness.volumes("lab-fault") == {}
    finally:
        load(good)
        harness.drop_group("lab-fault", "/dev/mapper/below")
        harness.run("dmsetup", "remove", "--retry", "below")


async def test_diagnose_without_problems(plain: str) -> None:
    findings = await harness.plain_target(plain).diagnose()
    assert [finding.what for finding in findings if not finding.ok] == []
    assert any("LVM tools 2." in finding.what for finding in findings)
