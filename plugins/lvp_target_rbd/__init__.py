"""Volumes in a Ceph pool (RBD), shared by several hosts. Registers the back end ``rbd``."""

from collections.abc import Sequence

from lvp_target_rbd.clones import RbdCloneTarget, make_rbd_target
from lvp_target_rbd.settings import RbdSettings
from lvp_target_rbd.target import RbdTarget
from provisioner.contracts import BackEnd, BlockTarget, hookimpl

__all__ = ["RbdCloneTarget", "RbdSettings", "RbdTarget", "lvp_block_targets"]


@hookimpl
def lvp_block_targets() -> Sequence[BackEnd[BlockTarget]]:
    """Return the back end ``rbd``."""
    return [BackEnd("rbd", make_rbd_target, RbdSettings)]
