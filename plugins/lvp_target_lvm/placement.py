"""Decides how to place a volume, from one inventory. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lvp_target_lvm import names
from provisioner.contracts import GIB, Placement
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lvp_target_lvm.report import Inventory, Lv
    from lvp_target_lvm.settings import LvmSettings
    from provisioner.contracts import StageRequest

_SNAPSHOT_ROLES = {"thickorigin", "thinorigin", "thicksnapshot"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement and the volume that has the name now, ``old``; it is None only for ``NEW``."""

    placement: Placement
    old: Lv | None = None


def place(
    settings: LvmSettings,
    inventory: Inventory,
    request: StageRequest,
    *,
    fits_kind: Callable[[Lv], bool],
    no_room: str | None,
) -> Plan:
    """Return how to place ``request``.

    ``fits_kind`` returns whether a volume is of the kind the target makes. ``no_room`` is the reason why another
    volume does not fit, if so. Raises VolumeExistsError, VolumeInUseError or NoSpaceError.
    """
    old = inventory.volumes.get(request.name)
    if old is None:
        if no_room is not None:
            raise NoSpaceError(no_room)
        return Plan(Placement.NEW)
    refusal = why_not_replaced(settings, inventory, old, request.size_bytes, fits_kind=fits_kind)
    if refusal is not None:
        raise VolumeExistsError(refusal)
    refuse_open(settings, old)
    if no_room is None:
        return Plan(Placement.SWAP, old)
    if settings.replace == "in-place":
        return Plan(Placement.IN_PLACE, old)
    raise NoSpaceError(f"{no_room}; a swap needs space for both volumes, so the existing volume {old.name} is kept")


def why_not_replaced(
    settings: LvmSettings, inventory: Inventory, old: Lv, asked: int, *, fits_kind: Callable[[Lv], bool]
) -> str | None:
    """Return why ``old`` must not be replaced by a volume of ``asked`` bytes, or None. Ignores openers."""
    what = f"volume {settings.volume_group}/{old.name}"
    if old.is_pool:
        return f"{what} is a pool; choose another name"
    if not fits_kind(old):
        kind = ",".join(sorted(old.layout)) or "unknown"
        return f"{what} is of another type ({kind}); remove it or choose another name"
    if settings.replace == "refuse":
        return f'{what} already exists, and the target\'s setting replace = "refuse" keeps it'
    if not old.ours and (settings.only_own or settings.foreign == "refuse"):
        setting = "only_own = true" if settings.only_own else 'foreign = "refuse"'
        return f"{what} was not created by this service, and the target's setting {setting} keeps it"
    if snapshots := snapshots_of(old, inventory):
        return f"{what} has snapshots or is a snapshot ({snapshots}); remove them or choose another name"
    if not old.active:
        return f"{what} is not active, so this service cannot check whether it is in use; activate or remove it"
    if not old.writable:
        return f"{what} is read-only; make it writable (lvchange -prw) or remove it"
    if old.health:
        return f"{what} is not healthy ({old.health}); repair or remove it"
    wanted = inventory.group.rounded(asked)
    # A difference of less than an extent is rounding, even for a small volume.
    allowed = max(asked * settings.size_tolerance_percent / 100, inventory.group.extent_size - 1)
    if abs(old.size - wanted) > allowed:
        return (
            f"{what} has {old.size / GIB:.2f} GiB, more than {settings.size_tolerance_percent:g}% off the requested "
            f"{asked / GIB:.2f} GiB; remove it or request its size"
        )
    return None


def refuse_open(settings: LvmSettings, old: Lv) -> None:
    """Raise VolumeInUseError if ``old`` is open or another job is replacing it."""
    if old.open:
        raise VolumeInUseError(f"volume {settings.volume_group}/{old.name} is in use and was not changed")
    if "by" in old.noted:
        raise VolumeInUseError(
            f"volume {settings.volume_group}/{old.name} is being replaced by job {old.noted.get('byjob', '')}"
        )


def snapshots_of(lv: Lv, inventory: Inventory) -> str:
    """Return the names of the snapshots of ``lv``, its own name if it is a copy-on-write snapshot, or an empty string.

    A thin snapshot does not depend on its origin, so a clone is not counted as a snapshot itself.
    """
    if not (lv.role & _SNAPSHOT_ROLES):
        return ""
    snapshots = sorted(other.name for other in inventory.volumes.values() if other.origin == lv.name)
    return ", ".join(snapshots) or lv.name


def no_room_in_group(inventory: Inventory, size: int) -> str | None:
    """Return why a plain volume of ``size`` bytes does not fit in the group, or None if it fits."""
    group = inventory.group
    if group.missing_disks:
        return f"volume group {group.name} has {group.missing_disks} missing disks; reconnect or remove them first"
    if group.rounded(size) <= group.free:
        return None
    return (
        f"volume group {group.name} has {group.free / GIB:.2f} GiB free, but {group.rounded(size) / GIB:.2f} GiB are "
        "needed"
    )


def is_users(lv: Lv) -> bool:
    """Return whether ``lv`` is a user's volume: its name is not reserved."""
    return not lv.name.startswith(names.OWN)
