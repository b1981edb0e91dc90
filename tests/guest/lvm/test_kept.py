"""Kept volumes in a volume group: power cuts, clones, room, overwriting in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from provisioner.contracts import Duration, Owner
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError
from tests.guest.lvm import harness
from tests.guest.lvm.copying import fill
from tests.guest.lvm.test_power_cuts import at_every_step

if TYPE_CHECKING:
    from lvp_target_lvm.group import GroupTarget
    from lvp_target_lvm.thin import ThinCloneTarget

MIB = harness.MIB


async def provision(target: GroupTarget, job: str, size: int = 32 * MIB, name: str = "web01") -> None:
    async with target.stage(harness.request(name, size, job), verified=True) as staged:
        await fill(staged, job.encode())


def make_foreign(group: str, size: int = 32) -> None:
    harness.lvm("lvcreate", "--yes", "-L", f"{size}m", "--addtag", "customer", "-n", "web01", group)
    harness.write(f"/dev/{group}/web01", b"theirs")


def contents(group: str) -> dict[str, bytes]:
    """Return the first bytes of each volume; activates those that are not."""
    harness.lvm("vgchange", "-ay", group)
    harness.run("udevadm", "settle", "--timeout=60")
    return {name: harness.head(f"/dev/{group}/{name}", 6) for name in harness.volumes(group)}


async def test_power_cuts_while_replacing(plain: str) -> None:
    def make() -> GroupTarget:
        return harness.plain_target(plain)

    async def foreign() -> None:
        harness.clear(plain)
        make_foreign(plain)

    async def nothing_lost() -> None:
        found = contents(plain)
        (volume,) = [volume for volume in [await make().find("web01")] if volume is not None]
        kept = await make().kept()
        if volume.owner is Owner.FOREIGN:
            assert found == {"web01": b"theirs"}
            assert harness.volumes(plain)["web01"]["lv_tags"] == "customer"
        else:
            (one,) = kept
            assert (one.owner, one.volume) == (Owner.FOREIGN, "web01")
            assert found == {"web01": b"job-" + volume.provenance.job_id[4:].encode(), one.kept_as: b"theirs"}  # type: ignore[union-attr]

    # Create, digest, tag, deactivate, rename, rename, rename again.
    assert await at_every_step(make, foreign, provision, nothing_lost) == 7


async def test_power_cuts_while_restoring(plain: str) -> None:
    def make() -> GroupTarget:
        return harness.plain_target(plain)

    async def replaced() -> None:
        harness.clear(plain)
        make_foreign(plain)
        await provision(make(), "job-00")

    async def restore(target: GroupTarget, _: str) -> None:
        (kept,) = await target.kept()
        await target.restore(kept.kept_as, "restore-1")

    async def nothing_lost() -> None:
        assert sorted(contents(plain).values()) == [b"job-00", b"theirs"]
        volume = await make().find("web01")
        assert volume is not None
        (kept,) = await make().kept()
        assert {volume.owner, kept.owner} == set(Owner)
        assert contents(plain)["web01"] == (b"theirs" if volume.owner is Owner.FOREIGN else b"job-00")
        tags = harness.volumes(plain)["web01"]["lv_tags"]
        assert ".by=" not in tags
        assert "restoring" not in tags

    # Tag the kept one, tag, deactivate and rename the present one, rename, rename, activate, remove tags.
    assert await at_every_step(make, replaced, restore, nothing_lost) == 8


async def test_a_clone_keeps_what_it_replaces(thin: str) -> None:
    target: ThinCloneTarget = harness.thin_target(thin)  # type: ignore[assignment]
    harness.lvm("lvcreate", "--yes", "-V", "32m", "--thinpool", f"{thin}/pool", "-n", "web01")
    harness.write(f"/dev/{thin}/web01", b"theirs")
    async with target.stage_base(harness.request("raw", 16 * MIB, "job-b", harness.DIGEST)) as staged:
        await fill(staged, b"base")
    base = await target.base(harness.DIGEST, "raw")
    assert base is not None
    async with target.stage_clone(base, harness.request()) as staged:
        clone = await staged.commit(harness.DIGEST)
    assert clone.replaced is not None
    (kept,) = await target.kept()
    assert (clone.replaced.kept_as, clone.replaced.owner) == (kept.kept_as, Owner.FOREIGN)
    restored = await target.restore(kept.kept_as, "restore-1")
    assert harness.head(restored.path, 6) == b"theirs"


async def test_a_job_removes_kept_volumes_for_room(tiny: str) -> None:
    """Ours only, the oldest first, and no more than needed; none if that is not enough."""
    target = harness.plain_target(tiny, keep_replaced=Duration(3600))
    for number in range(4):
        await provision(target, f"job-{number}", 48 * MIB)
    kept = sorted(await target.kept(), key=lambda one: one.replaced_at)
    assert [one.job_id for one in kept] == ["job-1", "job-2", "job-3"]
    with pytest.raises(NoSpaceError):
        await provision(target, "job-4", 1000 * MIB, "web02")
    assert len(await target.kept()) == 3
    missing = 96 * MIB - (await target.capacity()).free_bytes
    going = -(-missing // (48 * MIB))
    assert going > 0
    await provision(target, "job-5", 96 * MIB, "web02")
    left = sorted(await target.kept(), key=lambda one: one.replaced_at)
    assert left == kept[going:]


async def test_a_foreign_volume_is_not_overwritten_in_place(tiny: str) -> None:
    make_foreign(tiny, 160)
    target = harness.plain_target(tiny, replace="in-place")
    with pytest.raises(VolumeExistsError, match="no room to keep it"):
        await provision(target, "job-1", 160 * MIB)
    assert harness.head(f"/dev/{tiny}/web01", 6) == b"theirs"
    harness.lvm("lvremove", "--yes", f"{tiny}/web01")
    harness.lvm("lvcreate", "--yes", "-L", "160m", "-n", "web01", tiny)
    harness.run("blkdiscard", "-z", f"/dev/{tiny}/web01")
    await provision(target, "job-2", 160 * MIB)
    volume = await target.find("web01")
    assert volume is not None
    assert volume.owner is Owner.OURS


async def test_a_kept_volume_is_wiped_when_removed(tiny: str) -> None:
    target = harness.plain_target(tiny, keep_replaced=Duration(3600))
    for byte in (b"\x5c", b"\x6d"):
        async with target.stage(harness.request(), verified=True) as staged:
            await fill(staged, byte * 32 * MIB)
    (kept,) = await target.kept()
    await target.remove_kept(kept.kept_as)
    harness.lvm("lvcreate", "--yes", "-Wn", "-Zn", "-l", "100%FREE", "-n", "all", tiny)
    assert not harness.has_pattern(f"/dev/{tiny}/all", b"\x5c")
