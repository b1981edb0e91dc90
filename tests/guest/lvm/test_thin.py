"""The target ``thin-lvm`` on a real pool: bases, clones, eviction, and a pool that fills up."""

# ruff: noqa: PT012

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from lvp_target_lvm import names
from provisioner.contracts import Base, Placement
from provisioner.contracts.errors import NoSpaceError, TargetUnavailableError, VolumeExistsError, VolumeInUseError
from tests.guest.lvm import harness
from tests.guest.lvm.copying import copy, fill, make_images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lvp_target_lvm.thin import ThinCloneTarget

MIB = harness.MIB


def digest_of(number: int) -> str:
    return f"sha256:{number:064x}"


async def make_base(target: ThinCloneTarget, digest: str, data: bytes = b"base", size: int = 16 * MIB) -> Base:
    async with target.stage_base(harness.request("raw", size, "job-base", digest)) as staged:
        await fill(staged, data, digest)
    base = await target.base(digest, "raw")
    assert base is not None
    return base


@pytest.mark.parametrize("suffix", ["raw", "qcow2"])
async def test_stage_allocates_only_the_image(thin: str, tmp_path: Path, suffix: str) -> None:
    raw, qcow2 = make_images(tmp_path)
    async with harness.thin_target(thin).stage(harness.request(size=200 * MIB), verified=True) as staged:
        assert staged.device.reads_zero
        await copy(raw if suffix == "raw" else qcow2, staged.device, raw.stat().st_size)
        volume = await staged.commit(harness.DIGEST)
    assert harness.difference(volume.path, raw.read_bytes().ljust(200 * MIB, b"\0")) == ""
    # Four pieces of data use at most a few of the volume's 3200 chunks of 64 KiB.
    assert float(harness.lvm("lvs", "--noheadings", "-o", "data_percent", f"{thin}/web01")) < 1


async def test_clone_takes_four_calls(thin: str, tmp_path: Path) -> None:
    raw, _ = make_images(tmp_path)
    target = harness.thin_target(thin)
    async with target.stage_base(harness.request("raw", raw.stat().st_size, "job-base", harness.DIGEST)) as staged:
        await copy(raw, staged.device)
        await staged.commit(harness.DIGEST)
    base = await target.base(harness.DIGEST, "raw")
    assert base is not None
    row = harness.volumes(thin)[base.name]
    assert (row["lv_permissions"], row["lv_active"]) == ("read-only", "")
    assert row["lv_skip_activation"] == "skip activation"
    target = harness.thin_target(thin)  # a new one, without a recent inventory
    # The lookups of a job: the placement, the base, and then the clone itself.
    await target.placement(harness.request(size=64 * MIB))
    assert await target.base(harness.DIGEST, "raw") == base
    async with target.stage_clone(base, harness.request(size=64 * MIB)) as staged:
        volume = await staged.commit(harness.DIGEST)
    assert target.lvm.calls == {"lvs": 1, "lvcreate": 1, "lvextend": 1, "lvrename": 1}
    assert harness.difference(volume.path, raw.read_bytes().ljust(64 * MIB, b"\0")) == ""
    assert (await harness.thin_target(thin).find("web01")) == volume
    assert volume.provenance is not None
    assert volume.provenance.image_digest == harness.DIGEST
    # What a guest writes to its clone does not change the base.
    harness.write(volume.path, b"guest")
    async with target.stage_clone(base, harness.request("web02", 64 * MIB)) as staged:
        other = await staged.commit(harness.DIGEST)
    assert harness.head(other.path, 5) == raw.read_bytes()[:5]


async def test_stage_base_twice_at_once(thin: str) -> None:
    target = harness.thin_target(thin)
    async with target.stage_base(harness.request("raw", 16 * MIB, "job-1", harness.DIGEST)) as slower:
        base = await make_base(target, harness.DIGEST)
        with pytest.raises(VolumeExistsError):
            await fill(slower, b"late")
    assert sorted(harness.volumes(thin)) == sorted([base.name, "pool"])


async def test_stage_base_evicts_the_least_used(thin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvp_target_lvm.thin._BASE_GRACE", 0.0)
    target = harness.thin_target(thin, max_bases=2)
    first = await make_base(target, digest_of(1))
    await make_base(target, digest_of(2))
    assert await target.base(digest_of(1), "raw") == first
    async with target.stage_clone(first, harness.request()) as staged:
        await staged.commit(digest_of(1))
    await make_base(target, digest_of(3))
    found = [await target.base(digest_of(number), "raw") for number in (1, 2, 3)]
    assert [base is not None for base in found] == [True, False, True]
    # A clone does not need its base.
    harness.lvm("lvremove", "--yes", f"{thin}/{first.name}")
    volume = await target.find("web01")
    assert volume is not None
    assert harness.head(volume.path, 4) == b"base"


async def test_a_base_in_use_is_not_evicted(thin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvp_target_lvm.thin._BASE_GRACE", 0.0)
    target = harness.thin_target(thin, max_bases=1)
    first = await make_base(target, digest_of(1))
    async with target.stage_clone(first, harness.request()) as staged:
        await make_base(target, digest_of(2))
        assert first.name in harness.volumes(thin)
        await staged.commit(digest_of(1))
    await make_base(target, digest_of(3))
    assert [name for name in harness.volumes(thin) if name.startswith(names.BASE)] == [
        names.base_name(digest_of(3), "raw")
    ]


@pytest.fixture
def small_pool(tiny: str) -> Iterator[str]:
    """A pool of 64 MiB, which fills up within a few seconds."""
    words = ("--type", "thin-pool", "-L", "64m", "--poolmetadatasize", "4m", "-n", "small", tiny)
    harness.lvm("lvcreate", "--yes", *words)
    harness.lvm("lvchange", "--errorwhenfull", "y", f"{tiny}/small")
    yield tiny
    harness.clear(tiny)
    harness.lvm("lvremove", "--yes", f"{tiny}/small")


async def test_stage_stops_before_the_pool_is_full(small_pool: str) -> None:
    target = harness.thin_target(small_pool, "small", high_water_data_percent=60, watch_interval=0.1)
    with pytest.raises(NoSpaceError, match="high-water mark is 60%"):
        async with target.stage(harness.request(size=64 * MIB), verified=True) as staged:
            await trio.to_thread.run_sync(harness.write, staged.device.path, harness.PATTERN * 45)
            await trio.sleep_forever()
    assert list(harness.volumes(small_pool)) == ["small"]
    assert (await target.capacity()).data_percent == 0


async def test_a_pool_above_its_mark_evicts_bases(small_pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvp_target_lvm.thin._BASE_GRACE", 0.0)
    # A long interval: otherwise the watch might stop a copy that passes the mark just before its end.
    target = harness.thin_target(small_pool, "small", high_water_data_percent=60, watch_interval=600)
    await make_base(target, digest_of(1), harness.PATTERN * 40, 40 * MIB)
    assert await target.placement(harness.request()) is Placement.NEW
    async with target.stage(harness.request(), verified=True) as staged:
        assert [name for name in harness.volumes(small_pool) if name.startswith(names.BASE)] == []
        await fill(staged, harness.PATTERN * 32)
    async with target.stage(harness.request("web02"), verified=True) as staged:
        await fill(staged, harness.PATTERN * 8)
    for call in (target.placement(harness.request("web03")), make_base(target, digest_of(2))):
        with pytest.raises(NoSpaceError, match="high-water"):
            await call
    assert sorted(harness.volumes(small_pool)) == ["small", "web01", "web02"]


async def test_in_place_above_the_mark(small_pool: str) -> None:
    harness.lvm("lvcreate", "--yes", "-V", "40m", "--thinpool", f"{small_pool}/small", "-n", "web01")
    harness.write(f"/dev/{small_pool}/web01", harness.PATTERN * 40)
    marks = {"high_water_data_percent": 60, "watch_interval": 0.1}
    target = harness.thin_target(small_pool, "small", replace="in-place", foreign="overwrite", **marks)
    request = harness.request(size=40 * MIB)
    assert await target.placement(request) is Placement.IN_PLACE
    async with target.stage(request, verified=True) as staged:
        reports = target.lvm.calls["lvs"]
        while target.lvm.calls["lvs"] < reports + 2:  # the pool is still watched
            await trio.lowlevel.checkpoint()
        await fill(staged, b"new")
    assert harness.head(f"/dev/{small_pool}/web01", 3) == b"new"
    harness.lvm("lvcreate", "--yes", "-V", "16m", "--thinpool", f"{small_pool}/small", "-n", "other")
    harness.write(f"/dev/{small_pool}/other", harness.PATTERN * 16)
    with pytest.raises(NoSpaceError, match="web01 is kept"):
        async with target.stage(request, verified=True):
            raise AssertionError("the full pool would fail the job and lose the old volume")
    assert harness.head(f"/dev/{small_pool}/web01", 3) == b"new"


async def test_placement_counts_the_data_to_write(small_pool: str) -> None:
    target = harness.thin_target(small_pool, "small")
    assert await target.placement(harness.request(size=64 * MIB)) is Placement.NEW
    with pytest.raises(NoSpaceError, match="would be"):
        await target.placement(replace(harness.request(size=64 * MIB), data_bytes=60 * MIB))
    with pytest.raises(NoSpaceError, match="larger than the whole"):
        await target.placement(harness.request(size=128 * MIB))


async def test_stage_in_a_pool_that_does_not_zero(small_pool: str, tmp_path: Path) -> None:
    raw, _ = make_images(tmp_path)
    harness.lvm("lvcreate", "--yes", "-V", "60m", "--thinpool", f"{small_pool}/small", "-n", "previous")
    harness.write(f"/dev/{small_pool}/previous", harness.PATTERN * 60)
    harness.lvm("lvremove", "--yes", f"{small_pool}/previous")
    harness.lvm("lvchange", "-Zn", f"{small_pool}/small")
    target = harness.thin_target(small_pool, "small")
    async with target.stage(harness.request(size=32 * MIB), verified=True) as staged:
        assert not staged.device.reads_zero
        await copy(raw, staged.device)
        volume = await staged.commit(harness.DIGEST)
    assert harness.difference(volume.path, raw.read_bytes().ljust(32 * MIB, b"\0")) == ""
    assert any("zeroes" in finding.what and not finding.ok for finding in await target.diagnose())


async def test_stage_above_the_autoextend_threshold(small_pool: str, tmp_path: Path) -> None:
    harness.lvm("lvcreate", "--yes", "-V", "60m", "--thinpool", f"{small_pool}/small", "-n", "previous")
    harness.write(f"/dev/{small_pool}/previous", harness.PATTERN * 50)
    wrapper = tmp_path / "lvm"
    wrapper.write_text(
        "#!/bin/sh\n"
        'c=$1; shift; [ "$c" = lvcreate ] && shift 3 && set -- --yes --config '
        "'activation{thin_pool_autoextend_threshold=70}' \"$@\"\n"
        'exec /usr/sbin/lvm "$c" "$@"\n'
    )
    wrapper.chmod(0o755)
    target = harness.thin_target(small_pool, "small", tool_path=str(tmp_path))
    with pytest.raises(NoSpaceError, match="threshold"):
        async with target.stage(harness.request(), verified=True):
            raise AssertionError("LVM makes no volume above the threshold")


async def test_a_missing_or_inactive_pool(thin: str) -> None:
    with pytest.raises(TargetUnavailableError, match="nosuch does not exist"):
        await harness.thin_target(thin, "nosuch").placement(harness.request())
    harness.lvm("lvchange", "-an", f"{thin}/pool")
    with pytest.raises(TargetUnavailableError, match="not active"):
        await harness.thin_target(thin).placement(harness.request())
    harness.lvm("lvchange", "-ay", f"{thin}/pool")


async def test_concurrent_clones_and_removals(thin: str) -> None:
    target = harness.thin_target(thin)
    bases = [await make_base(target, digest_of(number)) for number in (1, 2)]
    before = harness.volumes(thin)

    async def client(number: int) -> None:
        for turn in range(2):
            request = harness.request(f"c{number}-{turn}", 32 * MIB, f"job-{number}-{turn}")
            base = bases[(number + turn) % 2]
            async with target.stage_clone(base, request) as staged:
                volume = await staged.commit(base.digest)
            assert harness.head(volume.path, 4) == b"base"
            await target.remove(request.name)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(client, number)
    assert harness.volumes(thin) == before


async def test_an_open_thin_volume_is_refused(thin: str) -> None:
    target = harness.thin_target(thin)
    base = await make_base(target, harness.DIGEST)
    async with target.stage_clone(base, harness.request()) as staged:
        volume = await staged.commit(harness.DIGEST)
    with open(volume.path, "rb"):  # noqa: ASYNC230, PTH123
        with pytest.raises(VolumeInUseError):
            async with target.stage_clone(base, harness.request(job="job-2")):
                raise AssertionError("a volume in use must not be replaced")
        with pytest.raises(VolumeInUseError):
            await target.remove("web01")
