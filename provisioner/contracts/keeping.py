"""Settings and decisions about replaced volumes that a target keeps aside. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from provisioner.contracts.settings import Duration
from provisioner.contracts.types import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from provisioner.contracts.types import KeptVolume

_DAY = 86400.0
# Seconds for which a restore keeps the volume that it replaces, at least: otherwise a restore could not be undone.
RESTORE_KEEP = 7 * _DAY


class KeepingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of a target that keeps replaced volumes; a target's own settings inherit them.

    ``keep_replaced`` is how long a replaced volume of this service is kept, ``keep_replaced_foreign`` any other.
    ``foreign`` says what happens to a volume of the requested name that this service did not create: ``"keep"``
    replaces it only if it can be kept (or is blank), ``"refuse"`` never replaces it, ``"overwrite"`` also overwrites
    it in place. ``remove_kept`` says which kept volumes a job that needs room may remove early: ``"never"``, ``"ours"``
    or ``"all"``, ours first and the oldest first.
    """

    # An image can be provisioned again, and keeping every replaced volume would double the space that hosts need.
    keep_replaced: Duration = Duration(0)
    # Its content may exist nowhere else, and the name may have been a mistake: long enough to notice after a weekend.
    keep_replaced_foreign: Duration = Duration(7 * _DAY)
    # Replacing a volume that somebody else made must be undoable unless an administrator says otherwise.
    foreign: Literal["keep", "refuse", "overwrite"] = "keep"
    # A job's own image is worth more than an old copy of one, but no job is worth data that exists nowhere else.
    remove_kept: Literal["never", "ours", "all"] = "ours"

    def keeping_faults(self) -> list[str]:
        """Return what is wrong with these settings, one message each."""
        if self.foreign == "keep" and not self.keep_replaced_foreign:
            return ['keep_replaced_foreign must be over 0s with foreign = "keep"; or set foreign = "overwrite"']
        return []

    def keep_seconds(self, owner: Owner) -> float:
        """Return for how long a replaced volume is kept; 0: it is removed."""
        return self.keep_replaced if owner is Owner.OURS else self.keep_replaced_foreign

    def may_remove_early(self, owner: Owner) -> bool:
        """Return whether a job that needs room may remove a kept volume of that owner."""
        return self.remove_kept == "all" or (self.remove_kept == "ours" and owner is Owner.OURS)


def removable(kept: Iterable[KeptVolume], settings: KeepingSettings) -> list[KeptVolume]:
    """Return the kept volumes that a job may remove for room, in that order: ours first, the oldest first.

    Never a cloud-init seed: a few MiB gain nothing, and the job that replaced it may still have to restore it.
    """
    allowed = [
        volume
        for volume in kept
        if settings.may_remove_early(volume.owner) and (volume.provenance is None or volume.provenance.seed_of is None)
    ]
    return sorted(allowed, key=lambda one: (one.owner is not Owner.OURS, one.replaced_at, one.kept_as))


def due(kept: Iterable[KeptVolume], now: float) -> list[KeptVolume]:
    """Return the kept volumes whose time is up, the oldest first."""
    return sorted((volume for volume in kept if volume.kept_until <= now), key=lambda one: one.kept_until)
