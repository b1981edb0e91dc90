"""Load, build and dump configurations. ``schema`` defines the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tomli_w

from provisioner.config.catalogs import read_toml, with_catalogs
from provisioner.config.schema import DEFAULT_CONVERTERS, Config
from provisioner.config.secrecy import plain, show
from provisioner.config.strict import Faults, decode_struct
from provisioner.contracts.errors import ConfigError, InvalidRequestError
from provisioner.contracts.urls import UrlPrefix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import msgspec

    from provisioner.config.access import Limits

# The local host: the sources of the embedded default configuration.
LOOPBACK_PREFIXES = ("http://127.0.0.1:*/", "http://localhost:*/", "http://[::1]:*/")
# Sections whose tables name a plugin.
PLUGIN_SECTIONS = ("sources", "converters", "targets", "guards", "observers")


def load(path: Path) -> Config:
    """Return the configuration in ``path``. Raises ConfigError with one line for each fault."""
    return parse(read(path), str(path))


def read(path: Path) -> dict[str, Any]:
    """Return the TOML document in ``path``, together with its catalogs. Raises ConfigError."""
    return with_catalogs(read_toml(path))


def parse(document: Mapping[str, Any], origin: str) -> Config:
    """Return a decoded TOML document as Config. ``origin`` names it in faults. Raises ConfigError."""
    faults = Faults(origin)
    config = decode(document, faults)
    if config is None:
        raise ConfigError("\n".join(faults.lines))
    return config


def decode(document: Mapping[str, Any], faults: Faults) -> Config | None:
    """Return a decoded TOML document as Config, or None after adding each fault to ``faults``.

    The plugins' tables are checked by the registry.
    """
    before = len(faults.lines)
    config = decode_struct(document, Config, "", faults)
    _check_tables(document, faults)
    for name, grant in _table(_table(document, "auth"), "certificates").items():
        if isinstance(grant, dict):
            _check_names(f"auth.certificates.{name}", grant, document, faults)
    return config if len(faults.lines) == before else None


def plugin_tables(document: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables that name a plugin, by section and name. Leaves out what ``decode`` reports."""
    found: dict[str, dict[str, dict[str, Any]]] = {section: {} for section in PLUGIN_SECTIONS}
    for section, tables in found.items():
        for name, entry in (DEFAULT_CONVERTERS if section == "converters" else {}).items():
            tables[name] = {"plugin": entry}
        for name, entry in _table(document, section).items():
            table = {"plugin": entry} if section == "converters" and isinstance(entry, str) else entry
            if isinstance(table, dict) and isinstance(table.get("plugin"), str):
                tables[name] = table
    return found


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the table at ``key``; an empty one if it is missing or has another type."""
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def _check_tables(document: Mapping[str, Any], faults: Faults) -> None:
    for kind in PLUGIN_SECTIONS:
        for name, table in _table(document, kind).items():
            if isinstance(table, dict):
                _check_plugin(kind, name, table, faults)
    targets = _table(document, "targets")
    if not targets and isinstance(document.get("targets", {}), dict):
        faults.add("targets", 'is missing; allowed: at least one table such as [targets.main] with plugin = "lvm"')
    defaults = []
    for name, table in targets.items():
        default = table.get("default", False) if isinstance(table, dict) else False
        if not isinstance(default, bool):
            faults.add(f"targets.{name}.default", f"found {show(default)}, allowed: true or false")
        elif default:
            defaults.append(name)
    if len(defaults) > 1:
        faults.add("targets", f"found default = true in {', '.join(defaults)}, allowed: in one")


def _check_plugin(kind: str, name: str, table: dict[str, Any], faults: Faults) -> None:
    if isinstance(table.get("plugin"), str):
        return
    if kind == "converters":
        faults.add(f"converters.{name}", f"found {show(table)}, allowed: a plugin's name or a table with plugin")
        return
    found = f"found {show(table['plugin'])}, " if "plugin" in table else "is missing; "
    faults.add(f"{kind}.{name}.plugin", f"{found}allowed: a plugin's name")


def check_limits(path: str, limits: Limits, config: Config) -> None:
    """Raise ConfigError if the limits name a target or a source that is not configured."""
    faults = Faults(path)
    configured = {"targets": config.targets, "sources": config.sources}
    _check_names("", {"targets": limits.targets, "sources": limits.sources}, configured, faults)
    if faults.lines:
        raise ConfigError("\n".join(faults.lines))


def _check_names(path: str, limits: Mapping[str, Any], document: Mapping[str, Any], faults: Faults) -> None:
    """Report unknown targets and sources; a misspelt name would silently forbid everything."""
    for kind in ("targets", "sources"):
        known, names = _table(document, kind), limits.get(kind)
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and name not in known and not (kind == "sources" and "://" in name):
                faults.add(
                    f"{path}.{kind}" if path else kind, f"found {show(name)}, allowed: {', '.join(known) or 'nothing'}"
                )


def embedded(
    data_dir: Path,
    bind: str,
    allow_sources: Sequence[str] = (),
    *,
    catalogs: Sequence[Path] = (),
    require_checksum: bool = True,
) -> Config:
    """Return a configuration without a file: file volumes under ``data_dir``, images over HTTP from this host.

    ``allow_sources`` are additional URL prefixes to fetch from; ``catalogs`` are files with named images and their
    sources. Raises ConfigError.
    """
    root = data_dir.absolute()
    for prefix in allow_sources:
        try:
            UrlPrefix.parse(prefix)
        except InvalidRequestError as error:
            raise ConfigError(f"{prefix}: not a URL prefix: {error}") from error
    document = with_catalogs(
        {
            "catalogs": [str(catalog.absolute()) for catalog in catalogs],
            "state_directory": str(root),
            "server": {"bind": [bind]},
            "auth": {"client_token": str(root / "client-token")},
            "cache": {"require_checksum": require_checksum},
            "sources": {"http": {"plugin": "http", "urls": [*LOOPBACK_PREFIXES, *allow_sources]}},
            "targets": {"files": {"plugin": "file", "directory": str(root / "volumes"), "make_directory": True}},
        }
    )
    return parse(document, "the embedded default")


def dump(config: Config, settings: Mapping[str, Mapping[str, msgspec.Struct]] | None = None) -> str:
    """Return the configuration as TOML with its defaults. Strings that may be secrets are hidden.

    ``settings``: those of the plugins by section and name, as the registry decodes them; their defaults are shown too.
    """
    document = plain(config)
    document["converters"] = {**DEFAULT_CONVERTERS, **document["converters"]}
    for section, tables in (settings or {}).items():
        for name, own in tables.items():
            table = document[section][name]
            core = {"plugin": table} if isinstance(table, str) else table
            kept = {key: core[key] for key in ("plugin", "default", "signature") if key in core}
            document[section][name] = {**kept, **plain(own)} if plain(own) else table
    return tomli_w.dumps(document)
