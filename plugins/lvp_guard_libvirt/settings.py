"""Settings of the plugins ``libvirt`` and ``libvirt-pools``. Reads nothing."""

from __future__ import annotations

import msgspec

from provisioner.contracts import Duration


class ConnectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The connection to libvirt.

    ``uri`` is a virsh connection URI; a socket elsewhere is ``qemu+unix:///system?socket=/run/libvirt/libvirt-sock``.
    """

    uri: str = "qemu:///system"
    virsh: str = "/usr/bin/virsh"
    # A running libvirtd answers at once; a restart takes seconds.
    timeout: Duration = Duration(20)

    def __post_init__(self) -> None:
        if not self.virsh.startswith("/"):
            raise ValueError("virsh must be an absolute path")
        if self.timeout < 1:
            raise ValueError("timeout must be at least 1s")


class GuardSettings(ConnectionSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the guard ``libvirt``."""

    # Off by default: automation that recreates a domain replaces its volume while the domain is shut off.
    defined: bool = False


class PoolSettings(ConnectionSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the observer ``libvirt-pools``. ``pools`` are the storage pools over the targets, by name."""

    pools: list[str]

    def __post_init__(self) -> None:
        # A bare super() does not work in a msgspec struct.
        ConnectionSettings.__post_init__(self)
        if not self.pools or not all(self.pools):
            raise ValueError("pools must name at least one storage pool")
