"""Settings of the plugins ``libvirt`` and ``libvirt-pools``. Reads nothing."""

from __future__ import annotations

import msgspec

from provisioner.contracts import AbsolutePath, Duration, refuse


class ConnectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The connection to libvirt.

    ``uri`` is a virsh connection URI, for another socket ``qemu+unix:///system?socket=/run/libvirt/libvirt-sock``.
    """

    uri: str = "qemu:///system"
    virsh: AbsolutePath = AbsolutePath("/usr/bin/virsh")
    # A running libvirtd answers at once; a restart takes seconds.
    timeout: Duration = Duration(20)

    def __post_init__(self) -> None:
        refuse(self.faults())

    def faults(self) -> list[str]:
        """Return what is wrong with the settings."""
        return ["timeout must be at least 1s"] if self.timeout < 1 else []


class GuardSettings(ConnectionSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the guard ``libvirt``."""

    # Off by default: automation that recreates a domain replaces its volume while the domain is shut off.
    defined: bool = False


class PoolSettings(ConnectionSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the observer ``libvirt-pools``. ``pools`` are the names of the targets' storage pools."""

    pools: list[str]

    def faults(self) -> list[str]:
        named = self.pools and all(self.pools)
        # A bare super() does not work in a msgspec struct.
        return ConnectionSettings.faults(self) + ([] if named else ["pools must name at least one storage pool"])
