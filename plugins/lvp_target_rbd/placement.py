"""Decides how to place a volume and whether there is room for it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from provisioner.contracts import GIB, Capacity, Placement
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from lvp_target_rbd.records import Image
    from lvp_target_rbd.settings import RbdSettings
    from provisioner.contracts import StageRequest

# Ceph takes any size; QEMU and direct I/O work in pages.
_PAGE = 4096


def rounded(size: int) -> int:
    """Return the size of an image that is to hold ``size`` bytes."""
    return -(-size // _PAGE) * _PAGE


def capacity_of(figures: Mapping[str, Any], freeable: int = 0) -> Capacity:
    """Return the space from the figures of a pool, which are without its copies; a quota counts as its size."""
    stored, free = int(figures["stored"]), int(figures["max_avail"])
    total, quota = stored + free, int(figures.get("quota_bytes", 0))
    if quota:
        total, free = min(total, quota), max(0, min(free, quota - stored))
    return Capacity(total, free, freeable_bytes=freeable)


def why_no_room(settings: RbdSettings, space: Capacity, size: int, data: int) -> str | None:
    """Return why a volume of ``size`` bytes, into which ``data`` bytes are written, does not fit; None if it does."""
    where = f"pool {settings.data_pool or settings.place}"
    if space.free_bytes <= 0:  # also with max_used_percent = 100, where writes to a full pool would hang
        return f"{where} is full"
    if size > space.total_bytes:
        return f"a volume of {size / GIB:.2f} GiB is larger than {where} ({space.total_bytes / GIB:.2f} GiB)"
    used = space.total_bytes - space.free_bytes + data
    percent = 100.0 * used / space.total_bytes if space.total_bytes else 100.0
    if percent > settings.max_used_percent:
        return f"{where} would be {percent:.0f}% full, over max_used_percent = {settings.max_used_percent:g}"
    return None


@dataclass(frozen=True, slots=True)
class Plan:
    """A placement, and the image that has the name now; it is None only for ``NEW``."""

    placement: Placement
    old: Image | None = None


def place(settings: RbdSettings, old: Image | None, request: StageRequest, no_room: str | None) -> Plan:
    """Return how to place ``request``; ``no_room`` is the reason why it does not fit. Ignores who has ``old`` open.

    Raises VolumeExistsError or NoSpaceError.
    """
    if old is not None and (refusal := why_not_replaced(settings, old)) is not None:
        raise VolumeExistsError(refusal)
    if no_room is not None:
        kept = "" if old is None else f"; the existing volume {request.name} is kept"
        raise NoSpaceError(no_room + kept)
    return Plan(Placement.NEW if old is None else Placement.SWAP, old)


def why_not_replaced(settings: RbdSettings, old: Image) -> str | None:
    """Return why ``old`` must not be replaced, or None."""
    what = f"volume {settings.place}/{old.name}"
    if settings.replace == "refuse":
        return f'{what} already exists, and the target\'s setting replace = "refuse" keeps it'
    if old.provenance is None and settings.foreign == "refuse":
        return f'{what} was not created by this service, and the target\'s setting foreign = "refuse" keeps it'
    return why_not_removed(settings, old)


def why_not_removed(settings: RbdSettings, old: Image) -> str | None:
    """Return why ``old`` can be neither replaced nor removed, or None."""
    if old.snapshots:
        clones = f" and {old.clones} clones" if old.clones else ""
        return (
            f"volume {settings.place}/{old.name} has snapshots ({', '.join(old.snapshots)}){clones}; remove them first"
        )
    return None
