# ruff: noqa: ASYNC220, ASYNC230 - tests hold devices open
"""Growing volumes on real volume groups: zeros, volumes that are open, full groups, and faults at each step."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from lvp_target_lvm import devices
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    ResizeError,
    TargetError,
    VolumeExistsError,
    VolumeInUseError,
)
from tests.guest.lvm import harness
from tests.guest.lvm.copying import fill
from tests.guest.lvm.fault_injection import FAULTS, FaultInjection
from tests.guest.lvm.test_power_cuts import at_every_step

if TYPE_CHECKING:
    from lvp_target_lvm.group import GroupTarget

MIB = harness.MIB
HEAD = b"content"


async def provision(target: GroupTarget, size: int = 16 * MIB) -> str:
    async with target.stage(harness.request(size=size), verified=True) as staged:
        await fill(staged, HEAD)
    volume = await target.find("web01")
    assert volume is not None
    return volume.path


def size_of(group: str) -> int:
    return int(harness.volumes(group)["web01"]["lv_size"])


async def test_new_part_is_zero(tiny: str) -> None:
    """The free extents hold a previous owner's bytes, in two pieces with a volume between them."""
    target = harness.plain_target(tiny)
    path = await provision(target)
    harness.fill_with_pattern(tiny)
    harness.lvm("lvcreate", "--yes", "-Wn", "-Zn", "-L", "8m", "-n", "gap", tiny)
    harness.lvm("lvcreate", "--yes", "-Wn", "-Zn", "-L", "8m", "-n", "between", tiny)
    harness.lvm("lvremove", "--yes", f"{tiny}/gap")
    free = int(harness.lvm("vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_free", tiny))
    grown = await target.resize("web01", 16 * MIB + free)
    assert grown.size_bytes == 16 * MIB + free
    assert harness.difference(path, HEAD.ljust(16 * MIB + free, b"\0")) == ""
    assert harness.content(f"/dev/{tiny}/between", MIB) == harness.PATTERN
    assert set(harness.volumes(tiny)) == {"web01", "between"}


async def test_new_size_appears_with_the_zeros(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the new extents are zeroed, the volume has its old size."""
    target = harness.plain_target(tiny)
    path = await provision(target)
    harness.fill_with_pattern(tiny)
    zero, sizes = devices.zero, []

    async def zero_and_look(staged: str) -> None:
        sizes.append(await devices.size_of(path))
        await zero(staged)

    monkeypatch.setattr(devices, "zero", zero_and_look)
    await target.resize("web01", 64 * MIB)
    assert sizes == [16 * MIB]


async def test_stale_data_keep(tiny: str) -> None:
    target = harness.plain_target(tiny, stale_data="keep")
    path = await provision(target)
    harness.fill_with_pattern(tiny)
    await target.resize("web01", 32 * MIB)
    assert harness.has_pattern(path)


@pytest.mark.parametrize("kind", ["plain", "thin"])
async def test_online(kind: str, request: pytest.FixtureRequest) -> None:
    """A process that has the volume open sees the new size, and zeros after the old end."""
    group = request.getfixturevalue(kind)
    target = harness.plain_target(group) if kind == "plain" else harness.thin_target(group)
    path = await provision(target)
    with Path(path).open("r+b") as device:
        reader = subprocess.Popen(["tail", "-f", "/dev/null"], stdin=device)
    try:
        with pytest.raises(VolumeInUseError, match=r"in use and was not changed .*tail"):
            await target.resize("web01", 32 * MIB)
        assert size_of(group) == 16 * MIB
        await target.resize("web01", 32 * MIB, online=True)
        assert harness.content(f"/proc/{reader.pid}/fd/0") == HEAD.ljust(32 * MIB, b"\0")
    finally:
        reader.kill()
        reader.wait()


async def test_grow_twice(plain: str) -> None:
    path = await provision(harness.plain_target(plain))
    await harness.plain_target(plain).resize("web01", 32 * MIB)
    await harness.plain_target(plain).resize("web01", 64 * MIB)
    assert harness.difference(path, HEAD.ljust(64 * MIB, b"\0")) == ""


async def test_inactive_volume(plain: str) -> None:
    target = harness.plain_target(plain)
    await provision(target)
    harness.lvm("lvchange", "-an", f"{plain}/web01")
    await target.resize("web01", 32 * MIB)
    assert size_of(plain) == 32 * MIB


async def test_refusals(plain: str) -> None:
    """Nothing changes: a foreign volume, a smaller size, too little space, a snapshot of it."""
    target = harness.plain_target(plain)
    harness.lvm("lvcreate", "--yes", "-L", "16m", "-n", "foreign", plain)
    with pytest.raises(NotFoundError):
        await target.resize("foreign", 32 * MIB)
    await provision(target)
    with pytest.raises(ResizeError, match="never shrunk"):
        await target.resize("web01", 8 * MIB)
    with pytest.raises(NoSpaceError, match="GiB free"):
        await target.resize("web01", 2**40)
    harness.lvm("lvcreate", "--yes", "-s", "-L", "8m", "-n", "snap", f"{plain}/web01")
    with pytest.raises(VolumeInUseError, match="has snapshots"):
        await target.resize("web01", 32 * MIB)
    assert set(harness.volumes(plain)) == {"web01", "foreign", "snap"}
    assert size_of(plain) == 16 * MIB


async def test_volume_changed_meanwhile(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator extends the volume, or another program takes the extents, at the worst moment."""
    target = harness.plain_target(tiny)
    await provision(target)

    async def extended(_: str) -> None:
        harness.lvm("lvextend", "-L", "20m", f"{tiny}/web01")

    monkeypatch.setattr(devices, "zero", extended)
    with pytest.raises(VolumeExistsError, match="was changed by another program"):
        await target.resize("web01", 64 * MIB)
    monkeypatch.undo()
    change = target.lvm.change

    async def taken(command: str, *words: str, config: str = "") -> None:
        await change(command, *words, config=config)
        if command == "lvremove":
            harness.lvm("lvcreate", "--yes", "-l", "100%FREE", "-n", "other", tiny)

    target.lvm.change = taken  # type: ignore[method-assign]
    with pytest.raises((NoSpaceError, TargetError)):
        await target.resize("web01", 64 * MIB)
    assert set(harness.volumes(tiny)) == {"web01", "other"}
    assert size_of(tiny) == 20 * MIB


async def test_cancel_while_zeroing(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = harness.plain_target(tiny)
    await provision(target)
    with trio.CancelScope() as scope:

        async def hang(_: str) -> None:
            scope.cancel()
            await trio.sleep_forever()

        monkeypatch.setattr(devices, "zero", hang)
        await target.resize("web01", 64 * MIB)
    assert scope.cancelled_caught
    assert set(harness.volumes(tiny)) == {"web01"}
    assert size_of(tiny) == 16 * MIB


@pytest.mark.parametrize(("kind", "changes"), [("plain", 3), ("thin", 1)])
async def test_power_cut_at_every_step(kind: str, changes: int, request: pytest.FixtureRequest) -> None:
    """The volume has its old or its new size, the new part is zero, and nothing is left."""
    group = request.getfixturevalue(kind)

    def make() -> GroupTarget:
        return harness.plain_target(group) if kind == "plain" else harness.thin_target(group)

    async def small() -> None:
        harness.clear(group)
        await provision(make())

    async def judge() -> None:
        assert size_of(group) in {16 * MIB, 64 * MIB}
        assert harness.difference(f"/dev/{group}/web01", HEAD.ljust(size_of(group), b"\0")) == ""

    assert await at_every_step(make, small, lambda target, _: target.resize("web01", 64 * MIB), judge) == changes


# The other faults take too long for every run.
@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f == "fails" else pytest.mark.slow) for f in FAULTS])
async def test_each_command(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(devices, "NODE_TIMEOUT", 3.0)

    def make(tools: str, limit: float) -> GroupTarget:
        return harness.plain_target(plain, tool_path=tools, change_timeout=limit, report_timeout=limit)

    async def small() -> None:
        harness.clear(plain)
        await provision(harness.plain_target(plain))

    async def grow(target: GroupTarget) -> None:
        await target.resize("web01", 64 * MIB)

    def judge(done: bool) -> None:
        assert set(harness.volumes(plain)) == {"web01"}
        assert size_of(plain) in ({64 * MIB} if done else {16 * MIB, 64 * MIB})
        assert harness.difference(f"/dev/{plain}/web01", HEAD.ljust(size_of(plain), b"\0")) == ""

    assert await FaultInjection(make, small, grow, judge, plain).undergo(tmp_path, fault) > 1
