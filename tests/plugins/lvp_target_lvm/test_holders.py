from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from lvp_target_lvm import holders

if TYPE_CHECKING:
    from pathlib import Path


def test_mounts_match_the_device_number(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "36 35 253:3 / /srv/a rw,noatime shared:1 - ext4 /dev/mapper/vg0-a rw\n"
        "37 35 253:33 / /srv/b rw - ext4 /dev/mapper/vg0-b rw\nodd\n"
    )
    assert list(holders._mounts(table, "253:3")) == ["mounted on /srv/a"]


def test_mapped_devices_are_named(tmp_path: Path) -> None:
    (tmp_path / "dm-7/dm").mkdir(parents=True)
    (tmp_path / "dm-7/dm/name").write_text("crypt-home\n")
    (tmp_path / "md0").mkdir()
    assert list(holders._mapped(tmp_path)) == ["under the device crypt-home", "under the device md0"]
    assert list(holders._mapped(tmp_path / "nothing")) == []


async def test_processes_with_an_open_device() -> None:
    number = os.stat("/dev/zero").st_rdev  # noqa: PTH116
    with open("/dev/zero", "rb") as file:  # noqa: PTH123, ASYNC230
        child = subprocess.Popen(["sleep", "1000"], stdin=file)  # noqa: ASYNC220
    try:
        found = list(holders._processes(holders.Path("/proc"), number))
        assert f"process sleep ({child.pid})" in found
    finally:
        child.kill()
        child.wait()


async def test_holders_of_an_inactive_volume() -> None:
    assert await holders.holders_of(-1, -1) == ""
