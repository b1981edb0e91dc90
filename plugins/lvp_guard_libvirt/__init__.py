"""libvirt: a guard for volumes that domains use, and an observer that refreshes storage pools.

::

    [guards.libvirt]
    plugin = "libvirt"
    defined = true              # also protect the volumes of domains that are shut off

    [observers.libvirt]
    plugin = "libvirt-pools"
    pools = ["vg0"]

The plugin calls ``virsh`` instead of libvirt's Python binding. The binding is compiled against one libvirt, and its
calls block in C and cannot be cancelled; a virsh that waits for a hung libvirtd is killed after a timeout. virsh is on
every libvirt host, and a check takes two or three calls of some 20 ms. The guard's connection is read-only.
"""

from collections.abc import Sequence

from lvp_guard_libvirt.guard import LibvirtGuard
from lvp_guard_libvirt.pools import PoolRefresher
from lvp_guard_libvirt.settings import GuardSettings, PoolSettings
from provisioner.contracts import BackEnd, Guard, Observer, hookimpl

__all__ = ["GuardSettings", "LibvirtGuard", "PoolRefresher", "PoolSettings", "lvp_guards", "lvp_observers"]


@hookimpl
def lvp_guards() -> Sequence[BackEnd[Guard]]:
    """Return the guard ``libvirt``."""
    return [BackEnd("libvirt", LibvirtGuard, GuardSettings)]


@hookimpl
def lvp_observers() -> Sequence[BackEnd[Observer]]:
    """Return the observer ``libvirt-pools``."""
    return [BackEnd("libvirt-pools", PoolRefresher, PoolSettings)]
