"""Load, build and dump configurations. ``schema`` defines the settings."""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Any

import msgspec
import tomli_w

from provisioner.config.schema import DEFAULT_CONVERTERS, Config
from provisioner.config.strict import Faults, decode_struct, show
from provisioner.contracts.errors import ConfigError, InvalidRequestError
from provisioner.contracts.small_file import read_small
from provisioner.contracts.urls import UrlPrefix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from provisioner.config.access import Limits

# The local host: the sources of the embedded default configuration.
LOOPBACK_PREFIXES = ("http://127.0.0.1:*/", "http://localhost:*/", "http://[::1]:*/")
# Largest configuration file in bytes; a file with a thousand tables is a tenth of it.
MAX_SIZE = 1024 * 1024
_SECRET_WORDS = ("token", "password", "secret", "authorization")


def load(path: Path) -> Config:
    """Return the configuration in ``path``. Raises ConfigError with one line for each fault."""
    try:
        document = tomllib.loads(read_small(path, MAX_SIZE).decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is not TOML: its values are nested too deeply") from error
    return parse(document, str(path))


def parse(document: Mapping[str, Any], origin: str) -> Config:
    """Return a decoded TOML document as Config. ``origin`` names it in faults. Raises ConfigError."""
    faults = Faults(origin)
    config = decode_struct(document, Config, "", faults)
    if config is not None:
        _check_tables(config, faults)
        for name, grant in config.auth.certificates.items():
            _check_names(f"auth.certificates.{name}", grant, config, faults)
    if config is None or faults.lines:
        raise ConfigError("\n".join(faults.lines))
    return config


def _check_tables(config: Config, faults: Faults) -> None:
    for kind in ("sources", "targets", "guards", "observers"):
        for name, table in getattr(config, kind).items():
            if not isinstance(table.get("plugin"), str):
                found = f"found {show(table['plugin'])}, " if "plugin" in table else "is missing; "
                faults.add(f"{kind}.{name}.plugin", f"{found}allowed: a plugin's name")
    for name, entry in config.converters.items():
        if not isinstance(entry if isinstance(entry, str) else entry.get("plugin"), str):
            faults.add(f"converters.{name}", f"found {show(entry)}, allowed: a plugin's name or a table with plugin")
    if not config.targets:
        faults.add("targets", 'is missing; allowed: at least one table such as [targets.main] with plugin = "lvm"')
    for name, table in config.targets.items():
        if not isinstance(table.get("default", False), bool):
            faults.add(f"targets.{name}.default", f"found {show(table['default'])}, allowed: true or false")
    defaults = [name for name, table in config.targets.items() if table.get("default") is True]
    if len(defaults) > 1:
        faults.add("targets", f"found default = true in {', '.join(defaults)}, allowed: in one")


def check_limits(path: str, limits: Limits, config: Config) -> None:
    """Raise ConfigError if the limits name a target or a source that is not configured."""
    faults = Faults(path)
    _check_names("", limits, config, faults)
    if faults.lines:
        raise ConfigError("\n".join(faults.lines))


def _check_names(path: str, limits: Limits, config: Config, faults: Faults) -> None:
    """Report unknown targets and sources; a misspelt name would silently forbid everything."""
    named = {"targets": limits.targets or [], "sources": [name for name in limits.sources or [] if "://" not in name]}
    for kind, names in named.items():
        known = getattr(config, kind)
        for name in names:
            if name not in known:
                faults.add(
                    f"{path}.{kind}" if path else kind, f"found {show(name)}, allowed: {', '.join(known) or 'nothing'}"
                )


def embedded(data_dir: Path, bind: str, allow_sources: Sequence[str] = (), *, require_checksum: bool = True) -> Config:
    """Return a configuration without a file: file volumes under ``data_dir``, images over HTTP from this host.

    ``allow_sources`` are additional URL prefixes to fetch from. Raises ConfigError.
    """
    root = data_dir.absolute()
    for prefix in allow_sources:
        try:
            UrlPrefix.parse(prefix)
        except InvalidRequestError as error:
            raise ConfigError(f"{prefix}: not a URL prefix: {error}") from error
    return parse(
        {
            "state_directory": str(root),
            "server": {"bind": [bind]},
            "auth": {"client_token": str(root / "client-token")},
            "cache": {"require_checksum": require_checksum},
            "sources": {"http": {"plugin": "http", "urls": [*LOOPBACK_PREFIXES, *allow_sources]}},
            "targets": {"files": {"plugin": "file", "directory": str(root / "volumes"), "make_directory": True}},
        },
        "the embedded default",
    )


def dump(config: Config) -> str:
    """Return the configuration as TOML with defaults. Values of keys that look like secrets are hidden."""
    document = msgspec.to_builtins(config, enc_hook=str)
    document["converters"] = {**DEFAULT_CONVERTERS, **document["converters"]}
    return tomli_w.dumps(_plain(document))


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _plain(item, name) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item, key) for item in value]
    if isinstance(value, str) and any(word in key for word in _SECRET_WORDS) and not _is_reference(value):
        return "(not shown)"
    return value


def _is_reference(value: str) -> bool:
    return value.startswith(("file:", "env:", "credential:", os.sep))
