"""Checks what a host needs for the target ``rbd``: findings for ``lvp doctor``. Changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lvp_target_rbd.placement import capacity_of, why_no_room
from provisioner.contracts import GIB, Finding, run_tool
from provisioner.contracts.errors import TargetError, ToolError

if TYPE_CHECKING:
    from lvp_target_rbd.client import Client
    from lvp_target_rbd.settings import RbdSettings

_FUSE = Path("/dev/fuse")
_MODULES = 'import rados, rbd; print(*rbd.RBD().version(), sep=".")'


async def findings(client: Client, settings: RbdSettings) -> list[Finding]:
    """Check Ceph's Python modules, QEMU with its driver for RBD, FUSE, the pool and the key."""
    found = [await _modules(settings), await _exporter(settings)]
    fuse = await trio.to_thread.run_sync(_FUSE.exists)
    found.append(
        Finding(fuse, "images can be exported as files" if fuse else f"{_FUSE} is missing", "load the module fuse")
    )
    if not found[0].ok:
        return found
    pools = [settings.pool, *([settings.data_pool] if settings.data_pool else [])]
    for pool in pools:
        found.append(await _space(client, settings, pool))
        if not found[-1].ok:
            return found
    return [*found, await _images(client, settings)]


async def _modules(settings: RbdSettings) -> Finding:
    fix = "install ceph-common, or set python to the distribution's Python"
    try:
        done = await run_tool([settings.python, "-I", "-c", _MODULES], timeout=30)
    except ToolError as error:
        return Finding(False, f"{settings.python} cannot load Ceph's modules: {error.message}", fix)
    return Finding(True, f"librbd {done.stdout.strip()} for {settings.python}")


async def _exporter(settings: RbdSettings) -> Finding:
    fix = "install qemu-block-extra (Debian) or qemu-block-rbd (Fedora)"
    # Without the driver, QEMU says so; with it, that there is no pool.
    argv = [settings.qemu_storage_daemon, "--blockdev", '{"driver": "rbd", "node-name": "n", "image": "i"}']
    try:
        done = await run_tool(argv, timeout=30, check=False)
    except ToolError as error:
        return Finding(False, error.message, "install qemu-system-common (Debian) or qemu-storage-daemon (Fedora)")
    known = "pool" in done.stderr
    return Finding(
        known, "QEMU can open RBD images" if known else f"QEMU has no driver for RBD: {done.stderr.strip()}", fix
    )


async def _space(client: Client, settings: RbdSettings, pool: str) -> Finding:
    try:
        space = capacity_of(await client.call("space", pool=pool))
    except TargetError as error:
        return Finding(
            False, error.message, f"create the pool, or give client.{settings.user} the capabilities in docs/rbd.md"
        )
    refusal = why_no_room(settings, space, 0, 0)
    free = f"pool {pool}: {space.free_bytes / GIB:.1f} GiB of {space.total_bytes / GIB:.1f} GiB free"
    return Finding(refusal is None, refusal or free, "add disks, raise the quota or remove volumes")


async def _images(client: Client, settings: RbdSettings) -> Finding:
    try:
        images = await client.inventory()
    except TargetError as error:
        return Finding(
            False, error.message, f"give client.{settings.user} the capabilities in docs/rbd.md, create the namespace"
        )
    volumes = sum(image.is_volume for image in images.values())
    bases = sum(image.name.startswith("lvp.base.") for image in images.values())
    return Finding(True, f"pool {settings.place}: {volumes} volumes, {bases} bases")
