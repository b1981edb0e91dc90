"""The service dies after each command of LVM in turn, and a new one finds what is left.

A power cut is every command from then on failing, the undo's too; what a cut does to the kernel's own state is tested
where the whole guest loses its power.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ProvisionerError
from tests.guest.lvm import lab
from tests.guest.lvm.copying import fill

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

    from lvp_target_lvm.group import GroupTarget
    from lvp_target_lvm.thin import ThinCloneTarget

MIB = lab.MIB


class PowerCut(BaseException):
    """Nothing catches it."""


def cut_after(target: GroupTarget, commands: int) -> list[str]:
    """Let the target run so many changes and then no more; what it ran."""
    run, ran = target.lvm.change, []

    async def change(command: str, *words: str) -> None:
        if len(ran) == commands:
            raise PowerCut
        await run(command, *words)
        ran.append(command)

    target.lvm.change = change  # type: ignore[method-assign]
    return ran


async def at_every_step(
    make: Callable[[], GroupTarget],
    prepare: Callable[[], Awaitable[None]],
    work: Callable[[GroupTarget], Awaitable[object]],
    judge: Callable[[], Awaitable[None]],
) -> int:
    """Do ``work`` with the power cut after 0, 1, 2... changes; recover, judge. How many changes it has in all."""
    for commands in range(30):
        await prepare()
        target = make()
        ran = cut_after(target, commands)
        try:
            await work(target)
        except (PowerCut, ProvisionerError, BaseExceptionGroup):
            done = False
        else:
            done = len(ran) < commands
        fresh = make()
        await fresh.recover(frozenset())
        assert list(await fresh.recover(frozenset())) == []
        left = [name for name in lab.volumes(fresh.lvm.group) if name.startswith(("lvp.stage", "lvp.old", "lvp.gone"))]
        assert left == [], f"after {commands} changes ({ran})"
        await judge()
        if done:
            return commands - 1
    raise AssertionError("the work never came to an end")


async def test_new_and_swap_and_remove_on_plain_volumes(plain: str) -> None:
    def make() -> GroupTarget:
        return lab.plain_target(plain)

    async def old_volume() -> None:
        lab.clear(plain)
        async with make().stage(lab.request(), verified=True) as staged:
            await fill(staged, b"old")

    async def swap(target: GroupTarget) -> None:
        async with target.stage(lab.request(job="job-2"), verified=True) as staged:
            await fill(staged, b"new")

    async def old_or_new() -> None:
        (volume,) = await make().list()
        head = lab.head(volume.path, 3)
        assert volume.provenance is not None
        assert (head, volume.provenance.job_id) in {(b"old", "job-1"), (b"new", "job-2")}
        assert lab.volumes(plain)["web01"]["lv_active"] == "active"
        assert ".by=" not in lab.volumes(plain)["web01"]["lv_tags"]

    async def whole_or_gone() -> None:
        for volume in await make().list():
            assert lab.head(volume.path, 3) == b"old"

    assert await at_every_step(make, old_volume, swap, old_or_new) == 7
    assert await at_every_step(make, old_volume, lambda target: target.remove("web01"), whole_or_gone) == 2


async def test_in_place(tiny: str) -> None:
    def make() -> GroupTarget:
        return lab.plain_target(tiny, replace="in-place")

    async def old_volume() -> None:
        lab.clear(tiny)
        lab.lvm("lvcreate", "--yes", "-L", "160m", "--addtag", "customer", "-n", "web01", tiny)
        lab.write(f"/dev/{tiny}/web01", b"old")

    async def overwrite(target: GroupTarget) -> None:
        async with target.stage(lab.request(size=160 * MIB), verified=True) as staged:
            await fill(staged, b"new")

    async def whole_or_absent() -> None:
        volume = await make().find("web01")
        if volume is not None:
            head = lab.head(volume.path, 3)
            assert head == (b"old" if volume.provenance is None else b"new")
            assert "customer" in lab.volumes(tiny)["web01"]["lv_tags"]

    assert await at_every_step(make, old_volume, overwrite, whole_or_absent) == 6


async def test_base_clone_and_eviction_on_thin_volumes(thin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvp_target_lvm.thin._BASE_GRACE", 0.0)
    older, newer = "sha256:" + "01" * 32, "sha256:" + "02" * 32

    def make() -> ThinCloneTarget:
        return lab.thin_target(thin, max_bases=1)  # type: ignore[return-value]

    async def make_base(target: ThinCloneTarget, digest: str) -> None:
        async with target.stage_base(lab.request("raw", 16 * MIB, "job-base", digest)) as staged:
            await fill(staged, b"base", digest)

    async def one_base() -> None:
        lab.clear(thin)
        await make_base(make(), older)

    async def all_of_it(target: GroupTarget) -> None:
        await make_base(target, newer)  # type: ignore[arg-type]
        base = await target.base(newer, "raw")  # type: ignore[attr-defined]
        async with target.stage_clone(base, lab.request()) as staged:  # type: ignore[attr-defined]
            await staged.commit(newer)

    async def judge() -> None:
        target = make()
        for digest in (older, newer):
            base = await target.base(digest, "raw")
            with suppress(AttributeError):
                lab.lvm("lvchange", "-ay", "-K", f"{thin}/{base.name}")  # type: ignore[union-attr]
                assert lab.head(f"/dev/{thin}/{base.name}", 4) == b"base"  # type: ignore[union-attr]
        for volume in await target.list():
            assert volume.size_bytes == 32 * MIB
            assert lab.head(volume.path, 4) == b"base"

    # Evict, create, freeze, deactivate, rename; snapshot, extend, rename.
    assert await at_every_step(make, one_base, all_of_it, judge) == 8
