"""Checks what a host needs for the LVM targets: findings for ``lvp doctor``. Changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lvp_target_lvm.bases import bases_in
from lvp_target_lvm.pool_room import pool_of, why_full
from lvp_target_lvm.recovery import foreign
from provisioner.contracts import GIB, Finding
from provisioner.contracts.errors import TargetError

if TYPE_CHECKING:
    from lvp_target_lvm.lvm import Lvm
    from lvp_target_lvm.report import Inventory, Lv
    from lvp_target_lvm.settings import LvmSettings, ThinSettings
    from provisioner.contracts import PlaceLock

_UDEV_CONTROL = Path("/run/udev/control")


async def findings_of_group(lvm: Lvm, settings: LvmSettings, lock: PlaceLock) -> list[Finding]:
    """Check the tools, the volume group, other installations, udev, and whether the host scans guests' volumes."""
    try:
        version = await lvm.version()
    except TargetError as error:
        return [Finding(False, error.message, "install lvm2, or set tool_path to the folder that holds lvm")]
    found = [Finding(True, f"LVM tools {version}")]
    try:
        inventory = await lvm.inventory()
        known = await trio.to_thread.run_sync(lock.known_owner)
        holder = await trio.to_thread.run_sync(lock.held_by_other)
        found += [*_group(inventory, settings), *judge_owners(settings, inventory, known or "", holder)]
    except TargetError as error:
        found.append(Finding(False, error.message, f"create the volume group (vgcreate {settings.volume_group} DISK)"))
    scanning = await lvm.setting("devices/scan_lvs")
    devices_file = await lvm.setting("devices/use_devicesfile")
    return [*found, await trio.to_thread.run_sync(_udev), *_scanning(scanning, devices_file)]


async def findings_of_pool(lvm: Lvm, settings: ThinSettings) -> list[Finding]:
    """Check the thin pool: it exists, is not nearly full, zeroes chunks, handles discards, fails writes when full."""
    try:
        inventory = await lvm.inventory()
        pool = pool_of(settings, inventory)
    except TargetError as error:
        full = f"{settings.volume_group}/{settings.pool}"
        return [
            Finding(False, error.message, f"create it (lvcreate --type thin-pool -L SIZE -n {full}) or activate it")
        ]
    threshold = await lvm.setting("activation/thin_pool_autoextend_threshold")
    return [*judge_pool(settings, pool, threshold), *_bases(settings, inventory)]


def judge_pool(settings: ThinSettings, pool: Lv, autoextend_threshold: str) -> list[Finding]:
    """Return the findings about the pool's settings. Pure."""
    full = f"{settings.volume_group}/{pool.name}"
    fill = why_full(settings, pool)
    threshold = int(autoextend_threshold) if autoextend_threshold.isdigit() else 100
    return [
        Finding(
            fill is None,
            fill or f"thin pool {full}: data {pool.data_percent:.0f}%, metadata {pool.metadata_percent:.0f}% full",
            f"extend it (lvextend -L +SIZE {full}, --poolmetadatasize for metadata) or remove volumes",
        ),
        Finding(
            pool.zero,
            f"thin pool {full} zeroes new chunks: {_yes(pool.zero)}",
            f"turn it on (lvchange -Zy {full}); otherwise every copy writes all its zeros and fills the pool",
        ),
        Finding(
            pool.discards != "ignore",
            f"thin pool {full} handles discards: {pool.discards or 'unknown'}",
            f"deactivate its volumes and run lvchange --discards passdown {full}; otherwise space that guests free is "
            "lost",
        ),
        Finding(
            pool.error_when_full,
            f"thin pool {full} fails writes at once when it is full: {_yes(pool.error_when_full)}",
            f"turn it on (lvchange --errorwhenfull y {full}); otherwise writes hang for a minute before they fail",
        ),
        Finding(
            threshold >= 100 or threshold >= settings.high_water_data_percent,
            f"LVM refuses new thin volumes in a pool over {threshold}% (activation/thin_pool_autoextend_threshold)",
            f"set high_water_data_percent (now {settings.high_water_data_percent:g}) to at most {threshold}",
        ),
    ]


def judge_owners(settings: LvmSettings, inventory: Inventory, known: str, holder: str | None) -> list[Finding]:
    """Return findings about other installations: one that is running now, or volumes it has staged. Pure."""
    name = inventory.group.name
    if holder is not None:
        what = f"another installation uses volume group {name} ({holder})"
        return [Finding(False, what, "stop one of them, or set shared = true in both")]
    owners = foreign(inventory, known)
    if settings.shared or not owners:
        return []
    others = ", ".join(sorted(set(owners.values())))
    what = f"volume group {name} has unfinished volumes of another installation ({others}): {', '.join(sorted(owners))}"
    fix = "start that installation; if its state directory is lost, run 'lvp recover --take-over'"
    return [Finding(False, what, fix)]


def _group(inventory: Inventory, settings: LvmSettings) -> list[Finding]:
    group = inventory.group
    free = f"volume group {group.name}: {group.free / GIB:.1f} GiB of {group.size / GIB:.1f} GiB free"
    # A thin pool often takes up its whole volume group.
    thin = any(lv.is_pool for lv in inventory.volumes.values())
    return [
        Finding(group.free >= GIB or thin, free, f"add a disk (vgextend {group.name} DISK) or remove volumes"),
        Finding(
            not group.missing_disks,
            f"volume group {settings.volume_group} has {group.missing_disks} missing disks",
            f"reconnect them, or remove them from the group (vgreduce --removemissing {group.name})",
        ),
    ]


def _bases(settings: ThinSettings, inventory: Inventory) -> list[Finding]:
    count = len(bases_in(inventory, settings.pool))
    if settings.clone or not count:
        return [Finding(True, f"{count} base volumes of at most {settings.max_bases}")]
    return [
        Finding(False, f"clone = false, but {count} base volumes still take up space", "remove the volumes lvp.base.*")
    ]


def _udev() -> Finding:
    return Finding(
        _UDEV_CONTROL.exists(),
        "udev creates the device nodes" if _UDEV_CONTROL.exists() else "udev is not running",
        "run udev (in a container: share the host's /run/udev and /dev)",
    )


def _scanning(scan_lvs: str, devices_file: str) -> list[Finding]:
    return [
        Finding(
            scan_lvs == "0",
            "LVM on the host scans guest disks" if scan_lvs != "0" else "LVM on the host does not scan guest disks",
            "set devices/scan_lvs = 0 in lvm.conf; otherwise the host may activate volume groups inside guest disks",
        ),
        Finding(True, f"LVM's devices file is {'in use' if devices_file == '1' else 'not in use'}"),
    ]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
