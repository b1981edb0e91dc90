"""Volumes in LVM volume groups. Registers the back ends ``lvm`` (plain volumes) and ``thin-lvm`` (clones in a pool)."""

from collections.abc import Sequence

from lvp_target_lvm.plain import PlainTarget
from lvp_target_lvm.settings import LvmSettings, ThinSettings
from lvp_target_lvm.thin import ThinCloneTarget, ThinTarget, make_thin_target
from provisioner.contracts import BackEnd, BlockTarget, hookimpl

__all__ = ["LvmSettings", "PlainTarget", "ThinCloneTarget", "ThinSettings", "ThinTarget", "lvp_block_targets"]


@hookimpl
def lvp_block_targets() -> Sequence[BackEnd[BlockTarget]]:
    """Return the back ends ``lvm`` and ``thin-lvm``."""
    return [BackEnd("lvm", PlainTarget, LvmSettings), BackEnd("thin-lvm", make_thin_target, ThinSettings)]
