"""Checks a configuration with everything it names: all tables, certificates, keys and secrets, and addresses.

What cannot be seen from here, such as a systemd credential, is reported as not checked, never as right. Nothing is
changed.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.auth.token_keys import KeyFile
from provisioner.config import Faults, check_secret, decode, read
from provisioner.contracts import Finding, TransportSettings
from provisioner.contracts.errors import ConfigError
from provisioner.linux import state_lock
from provisioner.tls import diagnostics

if TYPE_CHECKING:
    from provisioner.config import Config
    from provisioner.contracts import SecretRef
    from provisioner.registry import Made, Registry


@dataclass(slots=True)
class Report:
    """What is wrong with a configuration, and what could not be checked: one line each."""

    faults: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def check(file: Path, plugins: Registry, *, files: bool = True, host: bool = False) -> Report:
    """Check the configuration in ``file``, and with ``files`` what it names; with ``host`` also its addresses.

    Raises ConfigError if the file cannot be read or is not TOML.
    """
    document = read(file)
    faults = Faults(str(file))
    config = decode(document, faults)
    made = plugins.check(document, faults)
    report = Report(faults.lines)
    found: dict[str, Finding] = {}
    if files:
        found |= check_files(config, made)
    if host and config is not None:
        found |= check_addresses(config)
    for key, finding in found.items():
        if finding.ok is not True:
            (report.unchecked if finding.ok is None else report.faults).append(f"{file}: {key}: {finding.what}")
    return report


def check_files(config: Config | None, made: Made) -> dict[str, Finding]:
    """Return the findings about certificates, keys and secrets, by the key that names them."""
    now, found = time.time(), {}
    if config is not None:
        found = {f"server.{key}": finding for key, finding in diagnostics.check_server(config.server, now).items()}
        if config.auth.token_key is not None:
            found["auth.token_key"] = _token_key(config.auth.token_key)
    for section, tables in made.settings.items():
        for name, settings in tables.items():
            path = f"{section}.{name}"
            if isinstance(settings, TransportSettings):
                files = diagnostics.check_client(settings, now)
                found |= {f"{path}.{key}": finding for key, finding in files.items()}
    return found | {key: check_secret(reference) for key, reference in made.back_ends.secrets.items()}


def _token_key(reference: SecretRef) -> Finding:
    """Return whether the key of the token digests can be read; the daemon makes a file that is missing."""
    secret = check_secret(reference)
    if reference.startswith("file:") and not Path(reference.removeprefix("file:")).exists():
        return Finding(None, f"{reference} was not checked: the daemon creates it at its first start")
    if secret.ok is None:
        return secret
    try:
        KeyFile(None, reference).read()
    except ConfigError as error:
        return Finding(False, error.message, "correct the file, or its path and mode")
    return Finding(True, f"{reference} can be read")


def check_addresses(config: Config) -> dict[str, Finding]:
    """Return for each address of ``server.bind`` whether the daemon could listen on it."""
    running = state_lock.is_locked(Path(config.state_directory))
    return {f"server.bind[{number}]": _address(address, running) for number, address in enumerate(config.server.bind)}


def _address(address: str, running: bool) -> Finding:
    if running:
        return Finding(None, f"{address} was not checked: the daemon is running")
    if address.startswith("unix:"):
        return _unix_socket(Path(address.removeprefix("unix:")))
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemon does
        try:
            sock.bind((host, int(port)))
        except OSError as error:
            what = f"the daemon cannot listen on {address}: {error.strerror}"
            return Finding(False, what, "change bind, or stop the program that uses the address (ss -ltnp)")
    return Finding(True, f"the daemon can listen on {address}")


def _unix_socket(path: Path) -> Finding:
    """Check the folder only: binding would create the socket."""
    if os.access(path.parent, os.W_OK | os.X_OK):
        return Finding(True, f"{path.parent} can hold the socket {path.name}")
    return Finding(False, f"the daemon cannot create {path}", f"create {path.parent}, writable by the service's user")
