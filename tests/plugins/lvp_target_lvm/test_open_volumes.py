"""Volumes that LVM reports as open. A script replaces LVM."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from lvp_target_lvm import LvmSettings, PlainTarget, group, holders
from provisioner.contracts import BackEndContext, Placement
from provisioner.contracts.errors import VolumeInUseError
from provisioner.contracts.testing import a_request
from tests.plugins.lvp_target_lvm.cases import ours

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(holders, "_REREAD_DELAY", 0.0)


def a_target(folder: Path, open_reports: int, device: int = 0) -> PlainTarget:
    """Return a target whose volume is open in the first ``open_reports`` reports. ``removed`` shows its removal."""
    lv = ours(a_request().name)
    row = {
        "vg_name": "vg0", "vg_extent_size": "4194304", "vg_free": "1073741824", "vg_size": "1073741824",
        "lv_name": lv.name, "lv_size": str(a_request().size_bytes), "lv_layout": "linear", "lv_active": "active",
        "lv_device_open": "STATE", "lv_tags": ",".join(lv.tags),
        "lv_kernel_major": str(os.major(device) or -1), "lv_kernel_minor": str(os.minor(device) or -1),
    }  # fmt: skip
    (folder / "report").write_text(json.dumps({"report": [{"lv": [row]}]}))
    tool = folder / "lvm"
    tool.write_text(
        f'#!/bin/sh\ncd {folder}\n[ "$1" = lvs ] || {{ echo "$1" > removed; exit; }}\necho >> reports\n'
        f'[ $(wc -l < reports) -le {open_reports} ] && state=open\nsed "s/STATE/$state/" report\n'
    )
    tool.chmod(0o755)
    settings = LvmSettings(volume_group="vg0", tool_path=str(folder), stale_data="keep")
    return PlainTarget(settings, BackEndContext("lab", folder / "state"))


async def test_remove_a_volume_that_udev_holds_open(tmp_path: Path) -> None:
    await a_target(tmp_path, 2).remove(a_request().name)
    assert (tmp_path / "removed").read_text() == "lvremove\n"


async def test_replace_a_volume_that_udev_holds_open(tmp_path: Path) -> None:
    assert await a_target(tmp_path, 2).placement(a_request()) is Placement.SWAP


async def test_remove_a_volume_that_stays_open(tmp_path: Path) -> None:
    target = a_target(tmp_path, 99)
    with pytest.raises(VolumeInUseError, match=r"in use and was not changed$"):
        await target.remove(a_request().name)
    assert target.lvm.calls == {"lvs": 1 + holders._REREADS}


async def test_remove_a_volume_with_a_named_holder(tmp_path: Path) -> None:
    """The error is immediate if a holder is found."""
    with open("/dev/full", "rb") as file:  # noqa: PTH123, ASYNC230
        child = subprocess.Popen(["sleep", "1000"], stdin=file)  # noqa: ASYNC220
    try:
        target = a_target(tmp_path, 99, os.stat("/dev/full").st_rdev)  # noqa: PTH116
        with pytest.raises(VolumeInUseError, match="process sleep"):
            await target.remove(a_request().name)
    finally:
        child.kill()
        child.wait()
    assert target.lvm.calls == {"lvs": 1}
