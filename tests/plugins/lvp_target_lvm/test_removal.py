"""Failed removals restore the volume's name and activation. A script replaces LVM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lvp_target_lvm import LvmSettings, lvm
from lvp_target_lvm.lvm import Lvm
from lvp_target_lvm.removal import remove_wiped
from provisioner.contracts.errors import ProvisionerError, TargetError, VolumeInUseError
from tests.plugins.lvp_target_lvm.cases import ours

if TYPE_CHECKING:
    from pathlib import Path

GONE = "lvp.gone.t1"
# The file `name` holds the volume's name, the file `active` whether it is active.
TOOL = """#!/bin/sh
cd "$(dirname "$0")"
c=$1; shift 4
case "$c" in
lvs) sed -e "s/NAME/$(cat name)/" -e "s/ACTIVE/$(cat active)/" report; exit 0;;
esac
echo "$c $*" >> argv
FAULT
case "$c $1" in
"lvrename "*) echo -n "$3" > name;;
"lvchange -an") echo -n > active;;
"lvchange -ay") echo -n active > active;;
esac
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    group = {"vg_name": "vg0", "vg_extent_size": "4194304", "vg_free": "0", "vg_size": "0"}
    row = {**group, "lv_name": "NAME", "lv_size": "1", "lv_active": "ACTIVE"}
    (tmp_path / "report").write_text(json.dumps({"report": [{"lv": [row]}]}))
    (tmp_path / "name").write_text("web01")
    (tmp_path / "active").write_text("active")
    return tmp_path


async def refused(tools: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> ProvisionerError:
    (tools / "lvm").write_text(TOOL.replace("FAULT", fault))
    (tools / "lvm").chmod(0o755)
    monkeypatch.setattr(lvm, "_FIRST_DELAY", 0.0)

    async def wipe(path: str) -> None:
        raise AssertionError(f"{path} was wiped")

    with pytest.raises(TargetError) as caught:
        await remove_wiped(Lvm(LvmSettings(volume_group="vg0", tool_path=str(tools))), ours("web01"), "t1", wipe)
    assert (tools / "name").read_text() == "web01"
    assert (tools / "active").read_text() == "active"
    return caught.value


async def test_remove_a_volume_opened_meanwhile(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened between the report and the rename, so the kernel refuses to deactivate it."""
    busy = 'case "$c $1" in "lvchange -an") echo "Logical volume vg0/x in use." >&2; exit 5;; esac'
    error = await refused(tools, busy, monkeypatch)
    assert isinstance(error, VolumeInUseError)
    assert error.message == "volume vg0/web01 is in use and was not changed"
    ran = (tools / "argv").read_text().splitlines()
    assert ran[0] == f"lvrename vg0 web01 {GONE}"
    assert ran[-1] == f"lvrename vg0 {GONE} web01"


@pytest.mark.parametrize(
    "fault",
    [
        'case "$c $3" in "lvrename lvp.gone.t1") echo Internal >&2; exit 5;; esac',
        'case "$c $3" in "lvrename lvp.gone.t1") echo -n "$3" > name; echo Internal >&2; exit 5;; esac',
        'case "$c $1" in "lvchange -an") echo -n > active; echo Internal >&2; exit 5;; esac',
    ],
    ids=["the rename fails", "the rename works and fails", "deactivation works and fails"],
)
async def test_remove_failing_before_the_wipe(tools: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Internal" in (await refused(tools, fault, monkeypatch)).message
