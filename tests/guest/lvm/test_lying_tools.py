"""Each command of LVM made to fail, to hang and to lie, in a replacement: the old volume is whole or the new one is."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from provisioner.contracts.errors import ProvisionerError
from tests.guest.lvm import lab
from tests.guest.lvm.copying import fill

if TYPE_CHECKING:
    from pathlib import Path

    from provisioner.contracts import StagedVolume

# What the tool does instead, as a shell's words; $c and $@ are the command, $REAL the true one.
FAULTS = {
    "fails": "echo '  Internal error: made up' >&2; exit 5",
    "hangs": "sleep 1000",
    "claims to have done it": "exit 0",
    "does it and claims to have failed": '/usr/sbin/lvm "$c" "$@"; echo "  Something went wrong." >&2; exit 5',
    "does it and is killed": '/usr/sbin/lvm "$c" "$@"; kill -9 $$',
}


def faulty_lvm(folder: Path, command: str, number: int, fault: str) -> str:
    """A folder with an ``lvm`` that goes wrong at the so-manieth call of ``command``, once."""
    counter = folder / "calls"
    tool = folder / "lvm"
    tool.write_text(
        f'#!/bin/sh\nc=$1; shift\nif [ "$c" = {command} ]; then\n'
        f'  echo >> {counter}\n  if [ "$(wc -l < {counter})" = {number} ]; then {FAULTS[fault]}; fi\nfi\n'
        'exec /usr/sbin/lvm "$c" "$@"\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return str(folder)


# The calls of one swap, in their order: lvs, lvcreate; then lvchange (digest), lvs, lvchange (tag), lvs,
# lvchange (-an), lvrename (old), lvrename (new); then lvs, lvremove.
STEPS = [
    ("lvs", 1), ("lvcreate", 1), ("lvchange", 1), ("lvs", 2), ("lvchange", 2), ("lvs", 3), ("lvchange", 3),
    ("lvrename", 1), ("lvrename", 2), ("lvs", 4), ("lvremove", 1),
]  # fmt: skip


# A report that lies has said nothing; what hangs or is killed is the same to us whatever it was, but for what is left.
CASES = {
    "fails": STEPS,
    "hangs": [("lvs", 2), ("lvcreate", 1), ("lvchange", 3), ("lvrename", 2), ("lvremove", 1)],
    "claims to have done it": [step for step in STEPS if step != ("lvs", 4)],
    "does it and claims to have failed": [step for step in STEPS if step[0] != "lvs"],
    "does it and is killed": [("lvcreate", 1), ("lvrename", 1), ("lvrename", 2)],
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_a_tool_does_a_volume_is_whole(
    plain: str, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvp_target_lvm.devices.NODE_PATIENCE", 3.0)
    there = b"before"
    async with lab.plain_target(plain).stage(lab.request(), verified=True) as staged:
        await fill(staged, there)
    for command, number in CASES[fault]:
        where = f"{command} {number} {fault}"
        (tmp_path / "calls").unlink(missing_ok=True)
        path = faulty_lvm(tmp_path, command, number, fault)
        # A healthy command takes far less than this, also on a machine that is busy.
        limit = 8 if fault == "hangs" else 60
        target = lab.plain_target(plain, tool_path=path, change_timeout=limit, report_timeout=limit)
        new = f"{command}{number:03}".encode()[-6:]
        try:
            async with target.stage(lab.request(job=where), verified=True) as staged:
                await fill(staged, new)
                there = new
        except ProvisionerError:
            pass  # which one depends on the step; what is left is what counts here
        found = await lab.plain_target(plain).find("web01")
        assert found is not None, where
        assert lab.volumes(plain)["web01"]["lv_active"] == "active", where
        assert lab.head(found.path, 6) == there, where
        await lab.plain_target(plain).recover(frozenset())
        assert list(lab.volumes(plain)) == ["web01"], where


async def test_what_a_tool_says_is_in_the_error(plain: str, tmp_path: Path) -> None:
    target = lab.plain_target(plain, tool_path=faulty_lvm(tmp_path, "lvcreate", 1, "fails"))
    with pytest.raises(ProvisionerError, match="Internal error: made up"):
        await _stage(target.stage(lab.request(), verified=True))
    assert lab.volumes(plain) == {}


async def test_a_tool_that_is_not_there_says_so(plain: str, tmp_path: Path) -> None:
    target = lab.plain_target(plain, tool_path=str(tmp_path))
    with pytest.raises(ProvisionerError, match="lvm could not be started: No such file"):
        await target.list()
    assert not (await target.diagnose())[0].ok


async def _stage(context: object) -> StagedVolume:
    async with context as staged:  # type: ignore[attr-defined]
        return staged  # type: ignore[no-any-return]
