"""The settings of a ``[targets.NAME]`` table with ``plugin = "lvm"`` or ``"thin-lvm"``."""

from __future__ import annotations

from typing import Literal

from lvp_target_lvm.names import is_group_name, is_volume_name
from provisioner.contracts import Duration, KeepingSettings, refuse


class LvmSettings(KeepingSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the target ``lvm``.

    ``volume_group`` holds the volumes; it must exist and is never extended. ``replace`` says what happens if a volume
    of the requested name exists: ``"swap"`` stages the new one beside it and swaps the names at commit; ``"in-place"``
    does the same if there is room for both, and otherwise overwrites the old one once the image is verified;
    ``"refuse"`` fails the job.

    ``stale_data`` says what happens to data of an earlier owner: ``"zero"`` zeroes everything the image does not cover,
    and removed volumes; ``"discard"`` also discards a volume before it is written, and discards a removed volume
    instead of zeroing it; ``"keep"`` leaves the part after the image, and removed volumes, as they are.
    """

    volume_group: str
    # A swap needs room for both volumes, but a failed job never costs the old one.
    replace: Literal["swap", "in-place", "refuse"] = "swap"
    # Leaking another customer's data is worse than the time it takes to write zeros.
    stale_data: Literal["zero", "discard", "keep"] = "zero"
    # Off, because automation may create a volume itself and then have it filled. Turn it on if the volume group also
    # holds volumes made by hand; foreign = "refuse" does the same.
    only_own: bool = False
    # A volume whose size differs by more, in percent, was probably made for something else: the name may be mistyped.
    size_tolerance_percent: float = 5.0
    # Folder that contains the program `lvm`. If empty, it is searched for in the system's usual folders.
    tool_path: str = ""
    # A report takes well under a second, unless it waits for a device that hangs.
    report_timeout: Duration = Duration(30)
    # A change may wait for udev and for a busy disk; killing it half-way is the last resort.
    change_timeout: Duration = Duration(120)
    # Backup tools hold the volume group's lock while they create or merge a snapshot.
    lock_patience: Duration = Duration(60)
    # Whether other installations (state directories) may use the volume group at the same time; each recovers only
    # what it staged itself. By default a second installation is treated as a mistake.
    shared: bool = False

    def __post_init__(self) -> None:
        refuse(self.faults())

    def faults(self) -> list[str]:
        """Return the faults of the settings, one message each."""
        checks = {
            f"volume_group '{self.volume_group}' is not a valid name": not is_group_name(self.volume_group),
            "size_tolerance_percent must be 0 to 100": not 0 <= self.size_tolerance_percent <= 100,
            "tool_path must be an absolute path": bool(self.tool_path) and not self.tool_path.startswith("/"),
            "report_timeout and change_timeout must be at least 1s": min(self.report_timeout, self.change_timeout) < 1,
        }
        return [*(words for words, wrong in checks.items() if wrong), *self.keeping_faults()]


class ThinSettings(LvmSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the target ``thin-lvm``: those of ``lvm`` and those of the pool.

    ``pool`` is a thin pool in the volume group. With ``clone``, the first job with an image also creates a read-only
    base of it in the pool, and later volumes are snapshots of this base.
    """

    pool: str
    # A clone takes constant time instead of a copy, but each image in use needs space for a base in the pool.
    clone: bool = True
    # A base uses pool space and metadata as long as it exists; most hosts use fewer than twenty images.
    max_bases: int = 20
    # A full pool stops every volume in it, so the last tenth is reserved for existing volumes.
    high_water_data_percent: float = 90.0
    # Exhausted metadata needs an offline repair, so keep a larger reserve.
    high_water_metadata_percent: float = 80.0
    # A fast disk writes some 10 GiB in this time; the space above the high-water mark should be larger.
    watch_interval: Duration = Duration(5)

    def faults(self) -> list[str]:
        checks = {
            f"pool '{self.pool}' is not a valid name": not is_volume_name(self.pool),
            "max_bases must be at least 1": self.max_bases < 1,
            "high_water_data_percent must be over 0 and at most 100": not 0 < self.high_water_data_percent <= 100,
            "high_water_metadata_percent must be over 0 and at most 100": not 0
            < self.high_water_metadata_percent
            <= 100,
            "watch_interval must be at least 100ms": self.watch_interval < 0.1,
        }
        # A bare super() does not work in the methods of a msgspec struct.
        return LvmSettings.faults(self) + [words for words, wrong in checks.items() if wrong]
