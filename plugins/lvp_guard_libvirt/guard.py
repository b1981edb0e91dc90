"""Finds the domains that use a volume. Queries libvirt and matches the different names of one device."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

import trio

from lvp_guard_libvirt.domain_xml import Domain, PoolVolume, pool_folder, read_domains
from lvp_guard_libvirt.virsh import Virsh
from provisioner.contracts import Guard, VolumeUser
from provisioner.contracts.errors import TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lvp_guard_libvirt.settings import GuardSettings
    from provisioner.contracts import BackEndContext, Volume

# Domains per virsh call: the XML of one is some 8 KiB, and at most 1 MiB of a tool's output is kept.
_BATCH = 40


class LibvirtGuard(Guard):
    """Vetoes volumes that a running domain uses; with ``defined`` also those of domains that are shut off."""

    def __init__(self, settings: GuardSettings, _context: BackEndContext) -> None:
        self._virsh = Virsh(settings)
        self._defined = settings.defined

    async def users(self, volume: Volume) -> Sequence[VolumeUser]:
        domains = await self._domains()
        folders = await self._folders({used.pool for domain in domains for used in domain.pool_volumes})
        return await trio.to_thread.run_sync(_users, volume, domains, folders)

    async def _domains(self) -> list[Domain]:
        uuids = await self._uuids()
        found: list[Domain] = []
        for start in range(0, len(uuids), _BATCH):
            # virsh continues if a domain is gone. Its exit status is that of the last command, hence the echo.
            lines = [f"dumpxml {uuid}" for uuid in uuids[start : start + _BATCH]]
            found += read_domains(await self._virsh.run_readonly("; ".join([*lines, "echo"])))
        missing = set(uuids) - {domain.uuid for domain in found}
        if missing and missing & set(await self._uuids()):
            raise TargetUnavailableError(f"libvirt did not return the XML of domain {min(missing)}")
        return found

    async def _uuids(self) -> list[str]:
        listed = await self._virsh.run_readonly("list", "--uuid", *(["--all"] if self._defined else []))
        return re.findall(r"^[0-9a-f-]{36}$", listed, re.MULTILINE)

    async def _folders(self, pools: Iterable[str]) -> dict[str, str | None]:
        return {pool: await self._folder(pool) for pool in sorted(pools)}

    async def _folder(self, pool: str) -> str | None:
        try:
            return pool_folder(await self._virsh.run_readonly("pool-dumpxml", f"--pool={pool}"))
        except TargetUnavailableError as error:
            if "pool not found" in error.message:  # a domain that is shut off can name a removed pool
                return None
            raise


def _users(volume: Volume, domains: Sequence[Domain], folders: dict[str, str | None]) -> list[VolumeUser]:
    ours = _identity(volume.path)
    return [
        VolumeUser("domain", domain.name)
        for domain in domains
        if any(_identity(path) == ours for path in [*domain.paths, *_paths(domain.pool_volumes, folders)])
    ]


def _paths(volumes: Iterable[PoolVolume], folders: dict[str, str | None]) -> list[str]:
    return [f"{folder}/{used.volume}" for used in volumes if (folder := folders.get(used.pool)) is not None]


def _identity(path: str) -> tuple[object, ...]:
    """Return a key shared by all names of one device or file: /dev/vg0/web-01, /dev/mapper/vg0-web--01, /dev/dm-3.

    The name of an RBD image is the key itself. It does not say of which cluster the image is, so that an image of the
    same name on another one counts too.
    """
    if path.startswith("rbd:"):
        return ("rbd", path)
    try:
        status = os.stat(path)  # noqa: PTH116 - follows symbolic links
    except OSError:
        return ("path", os.path.realpath(path))
    if stat.S_ISBLK(status.st_mode):
        return ("device", status.st_rdev)
    return ("file", status.st_dev, status.st_ino)
