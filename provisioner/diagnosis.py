"""Checks a host before the daemon runs on it: every back end and the directories the daemon writes.

Owns the checks that belong to no back end; changes nothing.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from provisioner.contracts import GIB, Finding
from provisioner.contracts.errors import ProvisionerError

if TYPE_CHECKING:
    from provisioner.config import Config
    from provisioner.contracts import BlockTarget, Converter
    from provisioner.registry import BackEnds

# Seconds for each back end: its tools may hang.
_TIMEOUT = 60.0


async def examine(config: Config, back_ends: BackEnds) -> dict[str, list[Finding]]:
    """Return findings by subject: ``host``, each target by name, then the converters that have any."""
    findings = {"host": await trio.to_thread.run_sync(_host, config)}
    for name, target in back_ends.targets.items():
        findings[f"target {name}"] = await _back_end("target", target)
    for name, converter in back_ends.converters.items():
        if found := await _back_end("converter", converter):
            findings[f"converter {name}"] = found
    return findings


async def _back_end(kind: str, back_end: BlockTarget | Converter) -> list[Finding]:
    with trio.move_on_after(_TIMEOUT):
        try:
            return list(await back_end.diagnose())
        except ProvisionerError as error:
            return [Finding(False, error.message, f"see the {kind}'s table in the configuration")]
    return [Finding(False, f"no answer within {_TIMEOUT:g} s", "check its devices and tools")]


def _host(config: Config) -> list[Finding]:
    found = [
        Finding(os.geteuid() == 0, f"running as user {os.geteuid()}", "block devices need root: run it with sudo"),
        _folder("state directory", config.state_directory),
        _folder("cache", config.cache_directory, config.cache.min_free),
        _private("token file", Path(config.token_file)),
    ]
    server = config.server
    for what, path in (("TLS certificate", server.tls_certificate), ("client CA", server.client_ca)):
        if path is not None:
            found.append(_readable(what, Path(path)))
    if server.tls_key is not None:
        found += [_readable("TLS key", Path(server.tls_key)), _private("TLS key", Path(server.tls_key))]
    if "qemu-img" in str(config.converters) or not config.converters:
        there = shutil.which("qemu-img") is not None
        found.append(
            Finding(there, f"qemu-img is {'' if there else 'not '}installed", "install qemu-utils (rpm: qemu-img)")
        )
    found.append(Finding(time.time() > 1.7e9, "the clock is set", "set it: certificates and history need the time"))
    return found


def _folder(what: str, path: str, min_free: int = 0) -> Finding:
    """Check that the folder, or its nearest existing parent, is writable and has space."""
    place = Path(path)
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding(False, f"{what} {path} cannot be written", f"give the service's user write access to {place}")
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    return Finding(
        free > min_free,
        f"{what} {path}: {free / GIB:.1f} GiB free on its file system",
        f"free some space: less than {max(min_free, 1) / GIB:.1f} GiB is left",
    )


def _readable(what: str, path: Path) -> Finding:
    return Finding(os.access(path, os.R_OK), f"{what} {path}", "create it, readable by the service's user")


def _private(what: str, path: Path) -> Finding:
    shared = path.exists() and bool(path.stat().st_mode & 0o077)
    return Finding(not shared, f"{what} {path} is {'open to others' if shared else 'private'}", f"chmod 600 {path}")
