"""Each LVM command fails, hangs and lies in a swap, a removal, an overwrite in place, a clone and a base.

After a swap, either the old volume is complete, or the new one is and the old one is kept. After an overwrite in place
it is complete too, or it was removed because writing had started. Nothing is left over, and the error quotes LVM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from provisioner.contracts.errors import ProvisionerError
from tests.guest.lvm import harness
from tests.guest.lvm.copying import fill
from tests.guest.lvm.fault_injection import FAULTS, FaultInjection, a_tool

if TYPE_CHECKING:
    from pathlib import Path

    from lvp_target_lvm.group import GroupTarget
    from lvp_target_lvm.thin import ThinCloneTarget
    from provisioner.contracts import StagedVolume

MIB = harness.MIB
OLD, NEW = b"before", b"after."
OLDER, NEWER = "sha256:" + "01" * 32, "sha256:" + "02" * 32


@pytest.fixture(autouse=True)
def _timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvp_target_lvm.devices.NODE_TIMEOUT", 3.0)
    monkeypatch.setattr("lvp_target_lvm.thin._BASE_GRACE", 0.0)


def kept_in(group: str) -> set[str]:
    return {name for name in harness.volumes(group) if name.startswith("lvp.kept.")}


def judge_swapped(group: str, others: set[str], new: bytes, done: bool) -> None:
    rows = harness.volumes(group)
    kept = kept_in(group)
    assert set(rows) - kept == {"web01", *others}
    assert rows["web01"]["lv_active"] == "active"
    assert ".by=" not in rows["web01"]["lv_tags"]
    found = harness.head(f"/dev/{group}/web01", 6)
    # A failed job may have committed before. The tags of the volume show whether it did.
    ours = "lvp.job=new" in rows["web01"]["lv_tags"]
    assert found == (new if ours else OLD)
    assert ours or not done
    # The old volume was not ours, so it is kept.
    assert len(kept) == ours
    # A committed volume has the digest of its image.
    assert not ours or "lvp.digest=" in rows["web01"]["lv_tags"]


# The other faults take too long for every run.
@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f == "fails" else pytest.mark.slow) for f in FAULTS])
async def test_swap(plain: str, tmp_path: Path, fault: str) -> None:
    def make(tools: str, limit: float) -> GroupTarget:
        return harness.plain_target(plain, tool_path=tools, change_timeout=limit, report_timeout=limit)

    async def old_volume() -> None:
        harness.clear(plain)
        harness.lvm("lvcreate", "--yes", "-L", "8m", "-n", "web01", plain)
        harness.write(f"/dev/{plain}/web01", OLD)

    async def replace(target: GroupTarget) -> None:
        async with target.stage(harness.request(size=8 * MIB, job="new"), verified=True) as staged:
            await fill(staged, NEW)

    fault_injection = FaultInjection(
        make, old_volume, replace, lambda done: judge_swapped(plain, set(), NEW, done), plain
    )
    assert await fault_injection.undergo(tmp_path, fault) > 1


@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f == "fails" else pytest.mark.slow) for f in FAULTS])
async def test_remove(plain: str, tmp_path: Path, fault: str) -> None:
    """The volume is unchanged under its name, or gone. A removal that fails before the wipe changes nothing."""

    def make(tools: str, limit: float) -> GroupTarget:
        return harness.plain_target(plain, tool_path=tools, change_timeout=limit, report_timeout=limit)

    async def a_volume() -> None:
        harness.clear(plain)
        async with harness.plain_target(plain).stage(harness.request(size=8 * MIB), verified=True) as staged:
            await fill(staged, OLD)

    def judge(done: bool) -> None:
        rows = harness.volumes(plain)
        assert set(rows) <= {"web01"}
        assert not (rows and done)
        for row in rows.values():
            assert row["lv_active"] == "active"
            assert harness.head(f"/dev/{plain}/web01", 6) == OLD

    fault_injection = FaultInjection(make, a_volume, lambda target: target.remove("web01"), judge, plain)
    assert await fault_injection.undergo(tmp_path, fault) >= (1 if fault == "hangs" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
async def test_in_place(tiny: str, tmp_path: Path, fault: str) -> None:
    begun = []

    def make(tools: str, limit: float) -> GroupTarget:
        settings = {"change_timeout": limit, "report_timeout": limit, "replace": "in-place", "foreign": "overwrite"}
        return harness.plain_target(tiny, tool_path=tools, **settings)

    async def old_volume() -> None:
        begun.clear()
        harness.clear(tiny)
        harness.lvm("lvcreate", "--yes", "-L", "160m", "--addtag", "customer", "-n", "web01", tiny)
        harness.write(f"/dev/{tiny}/web01", OLD)

    async def overwrite(target: GroupTarget) -> None:
        async with target.stage(harness.request(size=160 * MIB, job="new"), verified=True) as staged:
            begun.append(True)
            await fill(staged, NEW)

    def judge(done: bool) -> None:
        rows = harness.volumes(tiny)
        assert set(rows) <= {"web01"}
        if begun and not done and not rows:
            return
        assert harness.head(f"/dev/{tiny}/web01", 6) == (NEW if begun else OLD)
        assert "customer" in rows["web01"]["lv_tags"]
        assert rows["web01"]["lv_active"] == "active"
        assert ".by=" not in rows["web01"]["lv_tags"]

    assert await FaultInjection(make, old_volume, overwrite, judge, tiny).undergo(tmp_path, fault) > 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
async def test_clone(thin: str, tmp_path: Path, fault: str) -> None:
    def make(tools: str, limit: float) -> ThinCloneTarget:
        settings = {"change_timeout": limit, "report_timeout": limit}
        return harness.thin_target(thin, tool_path=tools, **settings)  # type: ignore[return-value]

    await make_base(make("", 60), NEWER)
    base = await make("", 60).base(NEWER, "raw")
    assert base is not None

    async def old_volume() -> None:
        for name in harness.volumes(thin).keys() & {"web01", *kept_in(thin)}:
            harness.lvm("lvremove", "--yes", f"{thin}/{name}")
        harness.lvm("lvcreate", "--yes", "-V", "32m", "--thinpool", f"{thin}/pool", "-n", "web01")
        harness.write(f"/dev/{thin}/web01", OLD)

    async def replace(target: GroupTarget) -> None:
        async with target.stage_clone(base, harness.request(job="new")) as staged:  # type: ignore[attr-defined]
            await staged.commit(NEWER)

    def judge(done: bool) -> None:
        judge_swapped(thin, {"pool", base.name}, NEW, done)

    assert await FaultInjection(make, old_volume, replace, judge, thin).undergo(tmp_path, fault) > 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
async def test_base_and_eviction(thin: str, tmp_path: Path, fault: str) -> None:
    def make(tools: str, limit: float) -> ThinCloneTarget:
        settings = {"change_timeout": limit, "report_timeout": limit, "max_bases": 1}
        return harness.thin_target(thin, tool_path=tools, **settings)  # type: ignore[return-value]

    async def another_base() -> None:
        harness.clear(thin)
        await make_base(make("", 60), OLDER)

    async def a_base(target: GroupTarget) -> None:
        await make_base(target, NEWER)  # type: ignore[arg-type]

    def judge(done: bool) -> None:
        bases = {name: row for name, row in harness.volumes(thin).items() if name != "pool"}
        assert len(bases) <= 2
        for name, row in bases.items():
            assert name.startswith("lvp.base.")
            # A base is found by its tags. With wrong or incomplete ones it would be taken for another, or not found.
            assert ("lvp.digest=sha256:0101" in row["lv_tags"]) != ("lvp.digest=sha256:0202" in row["lv_tags"])
            assert (row["lv_permissions"], row["lv_active"]) == ("read-only", "")
            harness.lvm("lvchange", "-ay", "-K", f"{thin}/{name}")
            assert harness.head(f"/dev/{thin}/{name}", 6) == NEW
        assert not done or any("0202" in row["lv_tags"] for row in bases.values())

    assert await FaultInjection(make, another_base, a_base, judge, thin).undergo(tmp_path, fault) > 1


async def make_base(target: ThinCloneTarget, digest: str) -> None:
    async with target.stage_base(harness.request("raw", 16 * MIB, "job-base", digest)) as staged:
        await fill(staged, NEW, digest)


async def test_a_failing_tool_is_quoted(plain: str, tmp_path: Path) -> None:
    target = harness.plain_target(plain, tool_path=a_tool(tmp_path, "lvcreate", 1, FAULTS["fails"][0]))
    with pytest.raises(ProvisionerError, match="Internal error: made up"):
        await _stage(target.stage(harness.request(), verified=True))
    assert harness.volumes(plain) == {}


async def test_a_missing_tool(plain: str, tmp_path: Path) -> None:
    target = harness.plain_target(plain, tool_path=str(tmp_path))
    with pytest.raises(ProvisionerError, match="lvm could not be started: No such file"):
        await target.list()
    assert not (await target.diagnose())[0].ok


async def _stage(context: object) -> StagedVolume:
    async with context as staged:  # type: ignore[attr-defined]
        return staged  # type: ignore[no-any-return]
