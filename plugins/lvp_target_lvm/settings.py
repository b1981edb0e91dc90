"""The settings of a ``[targets.NAME]`` table with ``plugin = "lvm"`` or ``"thin-lvm"``. Reads nothing."""

from __future__ import annotations

from typing import Literal

import msgspec

from lvp_target_lvm.names import is_group_name, is_volume_name
from provisioner.contracts import Duration, refuse


class LvmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the target ``lvm``.

    ``volume_group`` is where the volumes stand; it is never made or grown. ``replace`` says what is done with a
    volume that is there already: ``"swap"`` makes the new one beside it and swaps the names at commit;
    ``"in-place"`` does the same where there is room for both and overwrites the old one where there is not, once
    the image is verified; ``"refuse"`` leaves every volume alone.

    ``stale_data`` says what becomes of bytes an earlier owner left: ``"zero"`` writes zeros over all of a volume
    the image does not cover, and over a removed volume; ``"discard"`` discards before, and instead of zeroing a
    removed volume; ``"keep"`` leaves the part past the image, and removed volumes, as they are.
    """

    volume_group: str
    # A swap needs room for both volumes, and in return no failure costs the old one.
    replace: Literal["swap", "in-place", "refuse"] = "swap"
    # Another customer's bytes are worse than the time it takes to write zeros.
    stale_data: Literal["zero", "discard", "keep"] = "zero"
    # Automation that made the volume itself asks for it to be filled; whoever shares the volume group with
    # hand-made volumes turns this on.
    only_own: bool = False
    # A volume this far from the asked size, in percent, was made for something else: a mistyped name.
    size_tolerance_percent: float = 5.0
    # Folder of the program `lvm`; empty: wherever the system keeps its tools.
    tool_path: str = ""
    # A report takes well under a second; one that waits for a device that hangs is given up.
    report_timeout: Duration = Duration(30)
    # A change may wait for udev and for a busy disk; killing it half-way is the last resort.
    change_timeout: Duration = Duration(120)
    # Backup tools hold the volume group's lock for as long as they make or merge a snapshot.
    lock_patience: Duration = Duration(60)
    # Whether other installations (state directories) may work on the volume group at the same time; each recovers only
    # what it staged itself. By default a second one is taken for a mistake.
    shared: bool = False

    def __post_init__(self) -> None:
        refuse(self.faults())

    def faults(self) -> list[str]:
        """Return what is wrong with the settings."""
        checks = {
            f"volume_group '{self.volume_group}' is not the name of a volume group": not is_group_name(
                self.volume_group
            ),
            "size_tolerance_percent must be 0 to 100": not 0 <= self.size_tolerance_percent <= 100,
            "tool_path must be an absolute folder": bool(self.tool_path) and not self.tool_path.startswith("/"),
            "report_timeout and change_timeout must be at least 1s": min(self.report_timeout, self.change_timeout) < 1,
        }
        return [words for words, wrong in checks.items() if wrong]


class ThinSettings(LvmSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the target ``thin-lvm``: those of ``lvm``, and the pool's.

    ``pool`` is a thin pool of the volume group. With ``clone`` the first volume of an image also makes a read-only
    base of it in the pool, and further ones are snapshots of that.
    """

    pool: str
    # Constant time instead of a copy; the price is one base's data in the pool for every image in use.
    clone: bool = True
    # A base costs pool space and metadata for as long as it stands; twenty are more images than most hosts see.
    max_bases: int = 20
    # A pool that is full stops every volume in it, so the last tenth is left to the volumes that are there.
    high_water_data_percent: float = 90.0
    # Exhausted metadata needs an offline repair: keep further away from it.
    high_water_metadata_percent: float = 80.0
    # A fast disk writes some 10 GiB in this time; the space above the high-water mark should be more than that.
    watch_interval: Duration = Duration(5)

    def faults(self) -> list[str]:
        checks = {
            f"pool '{self.pool}' is not the name of a thin pool": not is_volume_name(self.pool),
            "max_bases must be at least 1": self.max_bases < 1,
            "high_water_data_percent must be over 0 and at most 100": not 0 < self.high_water_data_percent <= 100,
            "high_water_metadata_percent must be over 0 and at most 100": not 0
            < self.high_water_metadata_percent
            <= 100,
            "watch_interval must be at least 100ms": self.watch_interval < 0.1,
        }
        # A struct's methods have no cell for a bare super().
        return LvmSettings.faults(self) + [words for words, wrong in checks.items() if wrong]
