"""Checks a host before the daemon runs on it: every back end, and the directories, files and addresses of the daemon.

Owns the checks that belong to no back end. Nothing is called right that was not opened. Changes nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from provisioner.config_check import check_addresses, check_files, demanded_signatures
from provisioner.contracts import GIB, Finding, write_probe
from provisioner.contracts.errors import ProvisionerError
from provisioner.signatures import openpgp

if TYPE_CHECKING:
    from provisioner.config import Config
    from provisioner.contracts import BlockTarget, Converter
    from provisioner.registry import Made

# Seconds for each back end: its tools may hang.
_TIMEOUT = 60.0


async def examine(config: Config, made: Made) -> dict[str, list[Finding]]:
    """Return findings by subject: the host, the files and addresses of the configuration, then each back end."""
    findings = {"host": await trio.to_thread.run_sync(_host, config)}
    document = msgspec.to_builtins(config, enc_hook=str)
    named = await trio.to_thread.run_sync(lambda: {**check_files(document, made), **check_addresses(document)})
    findings["configuration"] = [Finding(one.ok, f"{key}: {one.what}", one.fix) for key, one in named.items()]
    if any(settings.kind == "openpgp" for settings in demanded_signatures(document, made).values()):
        findings["signatures"] = await _sandbox_of_gpgv()
    for name, target in made.back_ends.targets.items():
        findings[f"target {name}"] = await _back_end("target", target)
    for name, converter in made.back_ends.converters.items():
        if found := await _back_end("converter", converter):
            findings[f"converter {name}"] = found
    return findings


async def _sandbox_of_gpgv() -> list[Finding]:
    try:
        missing = await openpgp.missing_layers()
    except ProvisionerError as error:
        return [Finding(False, f"the sandbox of gpgv: {error.message}", "see docs/security.md")]
    return [
        Finding(False, f"the sandbox of gpgv lacks a layer: {layer}", "see the sandbox in docs/security.md")
        for layer in missing
    ] or [Finding(True, "the sandbox of gpgv is complete: files, network, privileges, memory")]


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
    if config.server.tls_key is not None:
        found.append(_private("TLS key", Path(config.server.tls_key)))
    found.append(Finding(time.time() > 1.7e9, f"the clock says {time.strftime('%Y-%m-%d')}", "set the clock"))
    return found


def _folder(what: str, path: str, min_free: int = 0) -> Finding:
    """Check that the folder takes data and has space; if it does not exist, whether the daemon can create it."""
    place = Path(path)
    while not place.exists():
        place = place.parent
    try:
        write_probe(place)
        status = os.statvfs(place)
    except OSError as error:
        text = f"{what} {path}: {place} cannot be written: {error.strerror}"
        return Finding(False, text, f"give the service's user write access to {place}, and free space")
    free = status.f_bavail * status.f_frsize
    missing = "" if place == Path(path) else f" does not exist; the daemon creates it in {place}"
    return Finding(
        free > min_free,
        f"{what} {path}{missing}: {free / GIB:.1f} GiB free on its file system",
        f"free some space: less than {max(min_free, 1) / GIB:.1f} GiB is left",
    )


def _private(what: str, path: Path) -> Finding:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Finding(None, f"{what} {path} was not checked: {error.strerror}")
    shared = bool(mode & 0o077)
    return Finding(not shared, f"{what} {path} is {'open to others' if shared else 'private'}", f"chmod 600 {path}")
