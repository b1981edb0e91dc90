"""Two installations with one volume group. A script replaces LVM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lvp_target_lvm import LvmSettings, PlainTarget, ThinSettings, group
from lvp_target_lvm.diagnostics import judge_owners
from lvp_target_lvm.thin import make_thin_target
from provisioner.contracts import BackEndContext
from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.testing import a_request
from tests.plugins.lvp_target_lvm.cases import OWNER, aside, inventory, ours, plain

if TYPE_CHECKING:
    from pathlib import Path

    from lvp_target_lvm.group import GroupTarget
    from lvp_target_lvm.report import Lv

SETTINGS = LvmSettings(volume_group="vg0")


@pytest.fixture(autouse=True)
def _locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "LOCKS", tmp_path / "locks")


def a_target(folder: Path, state: str, *volumes: Lv, **settings: bool) -> GroupTarget:
    """Return a target whose LVM is a script: it reports ``volumes`` and logs all other commands in ``argv``."""
    row = {"vg_name": "vg0", "vg_extent_size": "4194304", "vg_free": "0", "vg_size": "0"}
    rows = [
        {**row, "lv_name": lv.name, "lv_size": "1", "lv_layout": "linear", "lv_tags": ",".join(lv.tags)}
        for lv in volumes
    ]
    report = json.dumps({"report": [{"lv": rows or [row]}]})
    (folder / "report").write_text(report)
    tool = folder / "lvm"
    tool.write_text(
        f'#!/bin/sh\ncase "$1" in lvs|vgs) cat {folder}/report;; *) echo "$1" "$5" >> {folder}/argv;; esac\n'
    )
    tool.chmod(0o755)
    made = LvmSettings(volume_group="vg0", tool_path=str(folder), **settings)
    return PlainTarget(made, BackEndContext("lab", folder / state))


async def test_recover_while_another_installation_runs(tmp_path: Path) -> None:
    first, second = a_target(tmp_path, "one"), a_target(tmp_path, "two")
    await first.recover(frozenset())
    refusal = rf"volume group vg0 is in use by another installation \(.*{tmp_path}/one\)"
    with pytest.raises(TargetUnavailableError, match=refusal):
        await second.recover(frozenset())
    with pytest.raises(TargetUnavailableError):
        await second.take_over()
    (finding,) = [finding for finding in await second.diagnose() if "another installation" in finding.what]
    assert not finding.ok
    assert [finding for finding in await first.diagnose() if "another installation" in finding.what] == []
    await first.aclose()
    await second.recover(frozenset())


async def test_stage_while_another_installation_runs(tmp_path: Path) -> None:
    first = a_target(tmp_path, "one")
    await first.recover(frozenset())
    second = make_thin_target(ThinSettings(volume_group="vg0", pool="pool"), BackEndContext("lab", tmp_path / "two"))
    with pytest.raises(TargetUnavailableError, match="another installation"):
        await second._new_staging(a_request(), None)


async def test_recover_keeps_volumes_of_others(tmp_path: Path) -> None:
    mine = a_target(tmp_path, "one", shared=True)
    owner = await mine._claim()
    leftovers = (
        ours("lvp.stage.t1", "t1", "dead", owner=owner),
        ours("lvp.stage.t2", "t2", "dead", owner="ffffffffffff"),
        aside(plain("web01"), "old", "web01", "t3", "dead", "ffffffffffff"),
    )
    mine = a_target(tmp_path, "one", *leftovers, shared=True)
    sentences = await mine.recover(frozenset())
    assert [sentence.split()[0] for sentence in sentences] == ["left", "left", "removed"]
    assert (tmp_path / "argv").read_text().split() == ["lvremove", "vg0/lvp.stage.t1"]
    (tmp_path / "argv").unlink()
    await mine.take_over()
    ran = (tmp_path / "argv").read_text().splitlines()
    assert {"lvremove vg0/lvp.stage.t1", "lvremove vg0/lvp.stage.t2"} <= set(ran)


def test_judge_owners_finds_foreign_volumes() -> None:
    stock = inventory(ours("lvp.stage.t2", owner="ffffffffffff"), ours("web02", owner="ffffffffffff"), plain("web03"))
    (finding,) = judge_owners(SETTINGS, stock, OWNER, None)
    assert "(ffffffffffff): lvp.stage.t2" in finding.what
    assert "--take-over" in finding.fix
    assert judge_owners(SETTINGS, stock, "ffffffffffff", None) == []
    assert judge_owners(LvmSettings(volume_group="vg0", shared=True), stock, OWNER, None) == []
    assert "process 1" in judge_owners(SETTINGS, stock, OWNER, "process 1")[0].what
