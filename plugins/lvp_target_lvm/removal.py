"""Wipes and removes a volume. Its name is free at once, and a volume in use keeps its name and content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_target_lvm import devices, names
from lvp_target_lvm.holders import in_use
from provisioner.contracts import undoing
from provisioner.contracts.errors import TargetError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lvp_target_lvm.lvm import Lvm
    from lvp_target_lvm.report import Lv


async def remove_wiped(lvm: Lvm, lv: Lv, token: str, wipe: Callable[[str], Awaitable[None]]) -> None:
    """Rename, deactivate, activate under the new name, wipe, remove.

    Deactivating ensures that the volume is closed: the kernel refuses to deactivate an open device, and a missing
    device cannot be opened. If it is open, restores the volume and raises VolumeInUseError. After deactivation the
    volume is no longer restored, even after a power cut.
    """
    gone = names.GONE + token
    full = f"{lvm.group}/{gone}"
    try:
        await lvm.change("lvrename", lvm.group, lv.name, gone)
        if lv.active:
            await _deactivate(lvm, lv, gone)
    except BaseException:
        with undoing(f"restore volume {lv.name}"):
            await _restore(lvm, lv, gone)
        raise
    try:
        await lvm.change("lvchange", "-ay", "-K", full)
        path = devices.path_of(lvm.group, gone)
        await devices.appeared(path)
        await wipe(path)
    except BaseException:
        # Cancelled, or the disk failed. The content may be wiped already, so remove the volume.
        with undoing(f"remove volume {lv.name}"):
            await lvm.change("lvremove", full)
        raise
    await lvm.change("lvremove", full)


async def _deactivate(lvm: Lvm, lv: Lv, gone: str) -> None:
    full = f"{lvm.group}/{gone}"
    try:
        await lvm.change("lvchange", "-an", full)
    except VolumeInUseError as error:
        raise await in_use(f"volume {lvm.group}/{lv.name} is in use and was not changed", lv) from error
    for name in (lv.name, gone):
        if await devices.is_there(lv.major, lv.minor, names.mapper_name(lvm.group, name)):
            raise TargetError(f"LVM reported that {full} was deactivated, but its device still exists")


async def _restore(lvm: Lvm, lv: Lv, gone: str) -> None:
    """Restore the name and the activation. Read the actual state: a failed command may have taken effect."""
    volumes = (await lvm.inventory()).volumes
    if gone in volumes:
        await lvm.change("lvrename", lvm.group, gone, lv.name)
    now = volumes.get(gone) or volumes.get(lv.name)
    if now is not None and lv.active and not now.active:
        await lvm.change("lvchange", "-ay", "-K", f"{lvm.group}/{lv.name}")
