"""libvirt: a guard for volumes that domains use, and an observer that refreshes storage pools.

::

    [guards.libvirt]
    plugin = "libvirt"
    defined = true              # also what a domain that is shut off would use

    [observers.libvirt]
    plugin = "libvirt-pools"
    pools = ["vg0"]

It asks ``virsh``, not libvirt's Python binding: the binding is compiled against one libvirt, and its calls block in C
where nothing can cancel them, while a program that waits for a libvirtd that hangs is ended with its time. virsh is on
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
    """The guard ``libvirt``."""
    return [BackEnd("libvirt", LibvirtGuard, GuardSettings)]


@hookimpl
def lvp_observers() -> Sequence[BackEnd[Observer]]:
    """The observer ``libvirt-pools``."""
    return [BackEnd("libvirt-pools", PoolRefresher, PoolSettings)]
