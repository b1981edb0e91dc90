"""Calls of the LVM tools. A script replaces LVM: real processes, but no device-mapper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.lowlevel
import trio.testing

from lvp_target_lvm import LvmSettings
from lvp_target_lvm.lvm import Lvm
from provisioner.contracts.errors import (
    NoSpaceError,
    TargetError,
    TargetUnavailableError,
    VolumeInUseError,
)

if TYPE_CHECKING:
    from pathlib import Path

LOCKED = "/run/lock/lvm/V_vg0:aux: flock failed: Resource temporarily unavailable"


def a_tool(folder: Path, script: str, **settings: object) -> Lvm:
    """Return an Lvm that runs ``script``. The file ``argv`` gets one line of arguments for each call."""
    tool = folder / "lvm"
    tool.write_text(f'#!/bin/sh\nn=$(cat {folder}/argv 2>/dev/null | wc -l)\necho "$@" >> {folder}/argv\n{script}\n')
    tool.chmod(0o755)
    made = {"tool_path": str(folder), "report_timeout": 10.0, "change_timeout": 10.0, **settings}
    return Lvm(LvmSettings(volume_group="vg0", **made))  # type: ignore[arg-type]


def called(folder: Path) -> list[str]:
    return (folder / "argv").read_text().splitlines()


async def test_change_waits_for_a_lock(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, f'[ $n -lt 2 ] && echo "{LOCKED}" >&2 && exit 5; exit 0')
    await lvm.change("lvcreate", "vg0")
    assert lvm.calls == {"lvcreate": 3}


async def test_change_gives_up_on_a_lock(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, f'echo "{LOCKED}" >&2; exit 5', lock_patience=0.0)
    with pytest.raises(TargetUnavailableError, match=r"lvcreate failed: .*flock failed"):
        await lvm.change("lvcreate", "vg0")
    assert lvm.calls == {"lvcreate": 1}


async def test_change_retries_a_busy_device_once(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, 'echo "Logical volume vg0/a in use." >&2; exit 5')
    with pytest.raises(VolumeInUseError):
        await lvm.change("lvremove", "vg0/a")
    assert lvm.calls == {"lvremove": 2}
    for words, kind in (("Insufficient free space: 9 needed", NoSpaceError), ("Internal error", TargetError)):
        lvm = a_tool(tmp_path, f'echo "{words}" >&2; exit 5')
        with pytest.raises(kind, match=words):
            await lvm.change("lvcreate", "vg0")
        assert lvm.calls == {"lvcreate": 1}


async def test_command_lines_of_changes_and_reports(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, """echo '{"report":[{"lv":[]}]}'""")
    await lvm.change("lvremove", "vg0/a")
    with pytest.raises(TargetUnavailableError, match="vg0 does not exist"):
        await lvm.inventory()
    change, lvs, vgs = called(tmp_path)
    assert change.startswith("lvremove --yes --config log{prefix=")
    assert "wait_for_locks=0" in change
    assert change.endswith(" vg0/a")
    for report in (lvs, vgs):
        assert "--reportformat json --units b --nosuffix -o " in report
        assert "wait_for_locks" not in report
        assert 'prefix=""' in report


async def test_inventory_with_a_failed_report(tmp_path: Path) -> None:
    for script in (
        'echo "Failed to find logical volume vg0/a" >&2; exit 5',
        "exit 5",
        "kill -9 $$",
        "echo nonsense",
        """echo '{"report":[{"lv":[{"lv_name":"a"}]}]}'""",
    ):
        with pytest.raises(TargetError):
            await a_tool(tmp_path, script).inventory()


async def test_change_that_exceeds_its_timeout(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, "exec sleep 1000", change_timeout=1.0)
    with pytest.raises(TargetUnavailableError, match=r"lvcreate: .*did not end within 1 s"):
        await lvm.change("lvcreate", "vg0")


async def test_change_cancelled_while_it_runs(tmp_path: Path) -> None:
    ready, go = tmp_path / "ready", tmp_path / "go"
    lvm = a_tool(tmp_path, f"mkfifo {ready} {go}; echo > {ready}; cat {go}; echo > {tmp_path}/done")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lvm.change, "lvcreate", "vg0")
            while not ready.exists():
                await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(ready.read_text)
            scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(go.write_text, "x")
    assert scope.cancel_called
    assert (tmp_path / "done").exists()


async def test_change_cancelled_before_it_starts(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, "exit 0")
    with trio.CancelScope() as scope:
        scope.cancel()
        await lvm.change("lvcreate", "vg0")
    assert scope.cancelled_caught
    assert not (tmp_path / "argv").exists()


async def test_changes_run_one_at_a_time(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, f"mkdir {tmp_path}/lock && rmdir {tmp_path}/lock || exit 5")
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(lvm.change, "lvcreate", "vg0")
    assert lvm.calls == {"lvcreate": 8}


ONE_GROUP = """cat <<'END'
{"report": [{"vg": [{"vg_name": "vg0", "vg_extent_size": "4194304", "vg_free": "0", "vg_size": "0"}]}]}
END
"""


async def test_recent_inventory_is_reused_for_a_second(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    lvm = a_tool(tmp_path, ONE_GROUP)
    first = await lvm.recent_inventory()
    assert await lvm.recent_inventory() is first
    reports = lvm.calls.total()
    mock_clock.jump(1.1)
    await lvm.recent_inventory()
    assert lvm.calls.total() == 2 * reports
    read = await lvm.inventory()
    assert lvm.calls.total() == 3 * reports, "inventory() must never return an older report"
    assert await lvm.recent_inventory() is read


async def test_recent_inventory_after_a_change(tmp_path: Path) -> None:
    lvm = a_tool(tmp_path, f'[ "$1" = lvcreate ] && exit 5; {ONE_GROUP}')
    first = await lvm.recent_inventory()
    with pytest.raises(TargetError):
        await lvm.change("lvcreate", "vg0")
    assert await lvm.recent_inventory() is not first, "a failed change may have taken effect"


async def test_targets_share_the_lock_of_a_group(tmp_path: Path) -> None:
    script = f'case "$1" in lvs) {ONE_GROUP};; *) mkdir {tmp_path}/lock && rmdir {tmp_path}/lock || exit 5;; esac'
    one, other = a_tool(tmp_path, script), a_tool(tmp_path, script)
    first = await one.recent_inventory()
    async with trio.open_nursery() as nursery:
        for lvm in (one, other) * 4:
            nursery.start_soon(lvm.change, "lvcreate", "vg0")
    assert (one.calls["lvcreate"], other.calls["lvcreate"]) == (4, 4)
    assert await one.recent_inventory() is not first
    second = await one.recent_inventory()
    await other.change("lvcreate", "vg0")
    assert await one.recent_inventory() is not second


async def test_recent_inventory_read_during_a_change(tmp_path: Path) -> None:
    go = tmp_path / "go"
    lvm = a_tool(
        tmp_path, f'case "$1" in lvs) until [ -e {go} ]; do sleep 0.01; done;; lvcreate) exit 0;; esac; {ONE_GROUP}'
    )
    seen = []

    async def look() -> None:
        seen.append(await lvm.recent_inventory())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await lvm.change("lvcreate", "vg0")
        go.touch()
    assert await lvm.recent_inventory() is not seen[0]


async def test_setting_and_version(tmp_path: Path) -> None:
    lvm = a_tool(
        tmp_path,
        'case "$1" in lvmconfig) echo scan_lvs=0;; *) echo "  LVM version:     2.03.16(2) (2022-05-18)";; esac',
    )
    assert await lvm.setting("devices/scan_lvs") == "0"
    assert await lvm.version() == "2.03.16(2)"


async def test_inventory_with_a_missing_tool(tmp_path: Path) -> None:
    lvm = Lvm(LvmSettings(volume_group="vg0", tool_path=str(tmp_path)))
    with pytest.raises(TargetUnavailableError, match="lvs: lvm could not be started"):
        await lvm.inventory()


async def test_alone_keeps_other_changes_out(tmp_path: Path) -> None:
    """Another target of the same volume group waits; changes of the task itself do not."""
    lvm, other = a_tool(tmp_path, "exit 0"), a_tool(tmp_path, "exit 0")
    async with trio.open_nursery() as nursery, lvm.alone():
        nursery.start_soon(other.change, "lvcreate", "taken")
        nursery.start_soon(lvm.change, "lvcreate", "taken")
        await trio.testing.wait_all_tasks_blocked()
        await lvm.change("lvremove", "staged", config=" devices{issue_discards=0}")
        await lvm.change("lvextend", "web01")
    words = [line.split() for line in called(tmp_path)]
    assert [line[0] for line in words] == ["lvremove", "lvextend", "lvcreate", "lvcreate"]
    assert "devices{issue_discards=0}" in words[0]
    assert "devices{issue_discards=0}" not in words[1]
