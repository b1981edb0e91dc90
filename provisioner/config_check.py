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
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from provisioner.auth.token_keys import KeyFile
from provisioner.config import (
    AuthSettings,
    Config,
    Faults,
    ServerSettings,
    SignatureSettings,
    check_secret,
    decode,
    decode_struct,
    read,
)
from provisioner.contracts import Finding, NamesFiles, TransportSettings
from provisioner.contracts.errors import ConfigError, SignatureError
from provisioner.linux import state_lock
from provisioner.signatures import openpgp, read_key
from provisioner.tls import diagnostics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.contracts import SecretRef
    from provisioner.registry import Made, Registry

S = TypeVar("S", bound=msgspec.Struct)

_TLS_KEYS = ("tls_certificate", "tls_key", "client_ca", "client_crl", "tls_minimum")


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
    decode(document, faults)
    made = plugins.check(document, faults)
    report = Report(faults.lines)
    found = check_files(document, made) if files else {}
    if host:
        found |= check_addresses(document)
    for key, finding in found.items():
        if finding.ok is not True:
            (report.unchecked if finding.ok is None else report.faults).append(f"{file}: {key}: {finding.what}")
    return report


def check_files(document: Mapping[str, Any], made: Made) -> dict[str, Finding]:
    """Return the findings about certificates, keys and secrets, by the key that names them.

    ``document`` may be wrong elsewhere: what names files correctly is checked all the same.
    """
    now, found = time.time(), {}
    server = _part(document, "server", ServerSettings, *_TLS_KEYS)
    if server is not None:
        found = {f"server.{key}": finding for key, finding in diagnostics.check_server(server, now).items()}
    auth = _part(document, "auth", AuthSettings, "token_key")
    if auth is not None and auth.token_key is not None:
        found["auth.token_key"] = _token_key(auth.token_key)
    for section, tables in made.settings.items():
        for name, settings in tables.items():
            path = f"{section}.{name}"
            if isinstance(settings, TransportSettings):
                files = diagnostics.check_client(settings, now)
                found |= {f"{path}.{key}": finding for key, finding in files.items()}
            elif isinstance(settings, NamesFiles):
                found |= {f"{path}.{key}": finding for key, finding in settings.check_files().items()}
    found |= check_signatures(demanded_signatures(document, made))
    return found | {key: check_secret(reference) for key, reference in made.back_ends.secrets.items()}


def demanded_signatures(document: Mapping[str, Any], made: Made) -> dict[str, SignatureSettings]:
    """Return the demanded signatures by the key of their table, whatever else is wrong with the document."""
    found = {f"sources.{name}": settings for name, settings in made.back_ends.signatures.items()}
    images = document.get("images")
    for name, image in images.items() if isinstance(images, dict) else ():
        table = image.get("signature") if isinstance(image, dict) else None
        if table is not None and (settings := decode_struct(table, SignatureSettings, "", Faults(""))) is not None:
            found[f"images.{name}"] = settings
    return {f"{key}.signature": settings for key, settings in found.items()}


def check_signatures(demanded: Mapping[str, SignatureSettings]) -> dict[str, Finding]:
    """Return the findings about the keys of signatures, and about gpgv."""
    found = {}
    for table, settings in demanded.items():
        found[f"{table}.{settings.key_setting}"] = _public_key(settings)
        if settings.kind == "openpgp":
            try:
                found[f"{table}.kind"] = Finding(True, f"{openpgp.gpgv()} checks OpenPGP signatures")
            except SignatureError as error:
                found[f"{table}.kind"] = Finding(False, error.message, "install the package gpgv")
    return found


def _public_key(settings: SignatureSettings) -> Finding:
    try:
        read_key(settings)
    except SignatureError as error:
        if isinstance(error.__cause__, PermissionError) and os.geteuid() != 0:
            return Finding(None, f"{settings.key_path} was not checked: user {os.geteuid()} cannot read it")
        return Finding(False, error.message, "put the publisher's public key there, readable by the service")
    return Finding(True, f"{settings.key_path} has public keys")


def _part(document: Mapping[str, Any], section: str, struct: type[S], *keys: str) -> S | None:
    """Return a section with these keys alone; None if they are wrong, which ``decode`` reports."""
    table = document.get(section)
    given = {key: table[key] for key in keys if key in table} if isinstance(table, dict) else {}
    return decode_struct(given, struct, section, Faults(""))


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


def check_addresses(document: Mapping[str, Any]) -> dict[str, Finding]:
    """Return for each address of ``server.bind`` whether the daemon could listen on it."""
    table = document.get("server")
    local = {**(table if isinstance(table, dict) else {}), "allow_plain_http": True}
    server = _part({"server": local}, "server", ServerSettings, "bind", "allow_plain_http")
    if server is None:
        return {}
    state_directory = document.get("state_directory")
    path = state_directory if isinstance(state_directory, str) else Config().state_directory
    running = state_lock.is_locked(Path(path))
    return {f"server.bind[{number}]": _address(address, running) for number, address in enumerate(server.bind)}


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
    """Check what is there: binding would create the socket."""
    if path.exists() and not path.is_socket():
        return Finding(False, f"the daemon cannot create {path}: a file has this name", "remove it, or change bind")
    if os.access(path.parent, os.W_OK | os.X_OK):
        return Finding(True, f"{path.parent} can hold the socket {path.name}")
    return Finding(False, f"the daemon cannot create {path}", f"create {path.parent}, writable by the service's user")
