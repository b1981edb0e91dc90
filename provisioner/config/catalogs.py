"""Catalogs: files with ``[images.NAME]`` and ``[sources.NAME]`` tables that a configuration includes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provisioner.contracts.errors import ConfigError
from provisioner.contracts.small_file import read_small

if TYPE_CHECKING:
    from collections.abc import Mapping

# Largest configuration file in bytes; a file with a thousand tables is a tenth of it.
MAX_SIZE = 1024 * 1024
# What a catalog may contain: it names images and where they come from, and can change nothing else.
_SECTIONS = ("images", "sources")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the TOML document in ``path``. Raises ConfigError."""
    try:
        return tomllib.loads(read_small(path, MAX_SIZE).decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid UTF-8 (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid TOML: its values are nested too deeply") from error


def with_catalogs(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document together with the tables of its ``catalogs``. Its own tables win over those of a catalog.

    Raises ConfigError if a catalog cannot be read, has other sections, or repeats a table of another catalog. Returns
    the document as it is if ``catalogs`` has the wrong type, which ``decode`` reports.
    """
    merged = dict(document)
    paths = document.get("catalogs", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) and path.startswith("/") for path in paths):
        return merged
    origins: dict[tuple[str, str], str] = {}
    for path in paths:
        for section, tables in _read_catalog(path).items():
            own = document.get(section, {})
            if not isinstance(own, dict):
                continue
            for name, table in tables.items():
                if (first := origins.setdefault((section, name), path)) != path:
                    raise ConfigError(f"{path}: {section}.{name}: {first} has a table of this name too")
                if name not in own:
                    merged[section] = {**merged.get(section, {}), name: table}
    return merged


def _read_catalog(path: str) -> dict[str, dict[str, Any]]:
    catalog = read_toml(Path(path))
    for section, tables in catalog.items():
        if section not in _SECTIONS:
            raise ConfigError(f"{path}: {section}: unknown key; a catalog has only {' and '.join(_SECTIONS)}")
        if not isinstance(tables, dict):
            raise ConfigError(f"{path}: {section}: allowed: tables such as [{section}.example]")
    return catalog
