"""What the tables with ``plugin = "libvirt"`` and ``plugin = "libvirt-pools"`` may say. Reads nothing."""

from __future__ import annotations

import msgspec

from provisioner.contracts import Duration


class ConnectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How libvirt is reached.

    ``uri`` as virsh takes it; a socket elsewhere is ``qemu+unix:///system?socket=/run/libvirt/libvirt-sock``.
    """

    uri: str = "qemu:///system"
    virsh: str = "/usr/bin/virsh"
    # A libvirtd that is up answers at once; one that restarts is back within seconds.
    timeout: Duration = Duration(20)

    def __post_init__(self) -> None:
        if not self.virsh.startswith("/"):
            raise ValueError("virsh must be an absolute path")
        if self.timeout < 1:
            raise ValueError("timeout must be at least 1s")


class GuardSettings(ConnectionSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the guard ``libvirt``."""

    # A volume of a domain that is shut off is what automation replaces when it makes that domain anew.
    defined: bool = False


class PoolSettings(ConnectionSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the observer ``libvirt-pools``. ``pools`` are the storage pools over the targets, by name."""

    pools: list[str]

    def __post_init__(self) -> None:
        # A struct's methods have no cell for a bare super().
        ConnectionSettings.__post_init__(self)
        if not self.pools or not all(self.pools):
            raise ValueError("pools must name at least one storage pool")
