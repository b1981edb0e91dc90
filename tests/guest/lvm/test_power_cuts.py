"""The service dies after every second LVM command in turn, and a new one recovers; LVP_ALL_ROWS=1: after every one.

A power cut is simulated: all later commands fail, those of the rollback too. The effect on the kernel's state is tested
by cutting the power of the whole guest.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ProvisionerError
from tests.guest.lvm import harness
from tests.guest.lvm.copying import fill
from tests.guest.lvm.fault_injection import ALL_ROWS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

    from lvp_target_lvm.group import GroupTarget
    from lvp_target_lvm.thin import ThinCloneTarget

MIB = harness.MIB


class PowerCut(BaseException):
    """A simulated power cut. The code under test does not catch it."""


def cut_after(target: GroupTarget, commands: int) -> list[str]:
    """Let the target run ``commands`` changes and fail all later ones; return the list of those that ran."""
    run, ran = target.lvm.change, []

    async def change(command: str, *words: str, config: str = "") -> None:
        if len(ran) == commands:
            raise PowerCut
        await run(command, *words, config=config)
        ran.append(command)

    target.lvm.change = change  # type: ignore[method-assign]
    return ran


async def at_every_step(
    make: Callable[[], GroupTarget],
    prepare: Callable[[], Awaitable[None]],
    work: Callable[[GroupTarget, str], Awaitable[object]],
    judge: Callable[[], Awaitable[None]],
) -> int:
    """Run ``work`` with a power cut after 1, 3, 5... changes; recover and judge. Return the number of changes.

    A cut takes some 6 s of emulated processor time. Cuts after 0, 2, 4... changes too run with LVP_ALL_ROWS.
    """
    for commands in range(30) if ALL_ROWS else range(1, 30, 2):
        await prepare()
        target = make()
        ran = cut_after(target, commands)
        try:
            await work(target, f"job-{commands:02}")
        except (PowerCut, ProvisionerError, BaseExceptionGroup):
            done = False
        else:
            done = True
        fresh = make()
        await fresh.recover(frozenset())
        assert list(await fresh.recover(frozenset())) == []
        left = [
            name for name in harness.volumes(fresh.lvm.group) if name.startswith(("lvp.stage", "lvp.old", "lvp.gone"))
        ]
        assert left == [], f"after {commands} changes ({ran})"
        await judge()
        if done:
            return len(ran)
    raise AssertionError("the work did not finish within 30 changes")


async def test_swap_and_remove_on_plain_volumes(plain: str) -> None:
    def make() -> GroupTarget:
        return harness.plain_target(plain)

    async def provision(target: GroupTarget, job: str) -> None:
        async with target.stage(harness.request(job=job), verified=True) as staged:
            await fill(staged, job.encode())

    async def some_volume() -> None:
        if await make().find("web01") is None:
            await provision(make(), "job-xx")

    async def complete() -> None:
        (volume,) = await make().list()
        assert volume.provenance is not None
        # The content is that of the job in the tags.
        assert harness.head(volume.path, 6) == volume.provenance.job_id.encode()
        (row,) = harness.volumes(plain).values()
        assert row["lv_active"] == "active"
        assert ".by=" not in row["lv_tags"]

    async def complete_or_absent() -> None:
        if await make().list():
            await complete()

    # Swap: create, digest, tag, deactivate, rename, rename, activate (to wipe the old one), remove.
    # Removal: rename, deactivate, activate, remove.
    assert await at_every_step(make, some_volume, provision, complete) == 8
    assert await at_every_step(make, some_volume, lambda target, _: target.remove("web01"), complete_or_absent) == 4


async def test_in_place(tiny: str) -> None:
    def make() -> GroupTarget:
        return harness.plain_target(tiny, replace="in-place", foreign="overwrite")

    async def old_volume() -> None:
        if await make().find("web01") is None:
            harness.lvm("lvcreate", "--yes", "-L", "160m", "--addtag", "customer", "-n", "web01", tiny)
            harness.write(f"/dev/{tiny}/web01", b"before")

    async def overwrite(target: GroupTarget, job: str) -> None:
        async with target.stage(harness.request(size=160 * MIB, job=job), verified=True) as staged:
            await fill(staged, job.encode())

    async def complete_or_absent() -> None:
        volume = await make().find("web01")
        if volume is not None:
            expected = "before" if volume.provenance is None else volume.provenance.job_id
            assert harness.head(volume.path, 6) == expected.encode()
            assert "customer" in harness.volumes(tiny)["web01"]["lv_tags"]

    # Tag, deactivate, rename, activate, tags, rename.
    assert await at_every_step(make, old_volume, overwrite, complete_or_absent) == 6


async def test_base_clone_and_eviction_on_thin_volumes(thin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvp_target_lvm.thin._BASE_GRACE", 0.0)
    older, newer = "sha256:" + "01" * 32, "sha256:" + "02" * 32

    def make() -> ThinCloneTarget:
        return harness.thin_target(thin, max_bases=1)  # type: ignore[return-value]

    async def make_base(target: ThinCloneTarget, digest: str) -> None:
        async with target.stage_base(harness.request("raw", 16 * MIB, "job-base", digest)) as staged:
            await fill(staged, b"base", digest)

    async def one_base() -> None:
        harness.clear(thin)
        await make_base(make(), older)

    async def base_and_clone(target: GroupTarget, _: str) -> None:
        await make_base(target, newer)  # type: ignore[arg-type]
        base = await target.base(newer, "raw")  # type: ignore[attr-defined]
        async with target.stage_clone(base, harness.request()) as staged:  # type: ignore[attr-defined]
            await staged.commit(newer)

    async def judge() -> None:
        target = make()
        for digest in (older, newer):
            base = await target.base(digest, "raw")
            with suppress(AttributeError):
                harness.lvm("lvchange", "-ay", "-K", f"{thin}/{base.name}")  # type: ignore[union-attr]
                assert harness.head(f"/dev/{thin}/{base.name}", 4) == b"base"  # type: ignore[union-attr]
        for volume in await target.list():
            assert volume.size_bytes == 32 * MIB
            assert harness.head(volume.path, 4) == b"base"

    # Evict, create, freeze, deactivate, rename; snapshot, extend, rename.
    assert await at_every_step(make, one_base, base_and_clone, judge) == 8
