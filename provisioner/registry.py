"""The pluggy host: finds installed back ends and creates those that the configuration names.

Loads plugins and checks hooks, names and settings. Knows no back end by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy
import structlog

from provisioner.back_ends import BackEnds, names
from provisioner.config import (
    Config,
    Faults,
    SignatureSettings,
    decode_struct,
    decode_values,
    plugin_tables,
    secret_references,
)
from provisioner.config_references import check_references
from provisioner.contracts import PROJECT, BackEnd, BackEndContext, hookspecs
from provisioner.contracts.errors import (
    ConfigError,
    PluginError,
    ProvisionerError,
)
from provisioner.contracts.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from importlib.metadata import Distribution

    from provisioner.contracts import SecretRef

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Kind of back end -> the hook that provides it.
KINDS = {
    "source": "lvp_image_sources",
    "converter": "lvp_converters",
    "target": "lvp_block_targets",
    "guard": "lvp_guards",
    "observer": "lvp_observers",
}


# Section of the configuration -> kind of back end.
SECTIONS = {f"{kind}s": kind for kind in KINDS}


# Keys of a table that belong to the core, beside "plugin".
CORE_KEYS = {"targets": ("default",), "sources": ("signature",)}


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One installed back end and the distribution that provides it."""

    kind: str
    name: str
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class Made:
    """What the tables of a configuration describe: back ends, and their settings by section and name."""

    back_ends: BackEnds
    settings: Mapping[str, Mapping[str, msgspec.Struct]]


class Registry:
    """Every installed back end, by kind and name."""

    def __init__(self) -> None:
        self._back_ends: dict[str, dict[str, BackEnd[Any]]] = {kind: {} for kind in KINDS}
        self._origins: dict[tuple[str, str], tuple[str, str]] = {}

    def add(self, plugin: object, name: str, distribution: str = "", version: str = "") -> None:
        """Register one plugin's back ends. Raises PluginError on a misspelt hook or a name that is taken."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin, name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {name} cannot be used: {error}") from error
        for kind, hook in KINDS.items():
            for back_end in _registered(manager, hook, name):
                self._add_one(kind, back_end, distribution or name, version)

    def _add_one(self, kind: str, back_end: BackEnd[Any], distribution: str, version: str) -> None:
        taken = self._origins.get((kind, back_end.name))
        if taken is not None:
            raise PluginError(
                f"two plugins provide a {kind} named {back_end.name!r}: {taken[0]} and {distribution}; remove one"
            )
        self._back_ends[kind][back_end.name] = back_end
        self._origins[kind, back_end.name] = (distribution, version)

    def describe(self) -> list[PluginInfo]:
        """Return what is installed, sorted by kind and name."""
        return [PluginInfo(kind, name, *self._origins[kind, name]) for kind, name in sorted(self._origins)]

    def build(self, config: Config) -> BackEnds:
        """Create the back ends that ``config`` names. Raises ConfigError with one line per error."""
        return self.make(config).back_ends

    def make(self, config: Config) -> Made:
        """Return the back ends that ``config`` names and their settings. Raises ConfigError with one line per error."""
        faults = Faults("config")
        document: dict[str, Any] = {section: getattr(config, section) for section in SECTIONS}
        document |= msgspec.to_builtins(
            {"images": config.images, "cache": {"prewarm": config.cache.prewarm}}, enc_hook=str
        )
        made = self.check({**document, "state_directory": config.state_directory}, faults)
        if faults.lines:
            raise ConfigError("\n".join(faults.lines))
        return made

    def check(self, document: Mapping[str, Any], faults: Faults) -> Made:
        """Create the back ends of a TOML document, adding what is wrong with their tables to ``faults``.

        Leaves out tables that ``config.decode`` reports.
        """
        tables = plugin_tables(document)
        state_directory = Path(str(document.get("state_directory") or Config().state_directory))
        made = {section: self._make(section, tables[section], state_directory, faults) for section in SECTIONS}
        back_ends = {section: {name: one[1] for name, one in found.items()} for section, found in made.items()}
        for image_format, converter in back_ends["converters"].items():
            if image_format not in converter.formats:
                plugin, formats = tables["converters"][image_format]["plugin"], ", ".join(sorted(converter.formats))
                faults.add(f"converters.{image_format}", f"{plugin} reads only {formats}")
        settings = {section: {name: one[0] for name, one in found.items()} for section, found in made.items()}
        secrets = {key: secret for section in SECTIONS for key, secret in self._secrets(section, tables[section])}
        default_target, readers = _default_target(tables["targets"]), self._readers()
        signatures = dict(_signatures(tables["sources"], faults))
        built = BackEnds(
            **back_ends, default_target=default_target, readers=readers, secrets=secrets, signatures=signatures
        )
        sources = document.get("sources", {})
        known = isinstance(sources, dict) and len(sources) == len(built.sources)
        check_references(document, built, faults, sources_known=known)
        return Made(built, settings)

    def _readers(self) -> dict[str, list[str]]:
        """Return the names of the installed converters by image format."""
        readers: dict[str, list[str]] = {}
        for name, back_end in sorted(self._back_ends["converter"].items()):
            for image_format in getattr(back_end.create, "formats", ()):
                readers.setdefault(image_format, []).append(name)
        return readers

    def _secrets(self, section: str, tables: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, SecretRef]]:
        """Yield the secret references in the tables, whatever else is wrong with these, and their keys."""
        for name, table in tables.items():
            back_end = self._back_ends[SECTIONS[section]].get(table["plugin"])
            if back_end is not None:
                values, _ = decode_values(table, back_end.settings, "", Faults(""))
                yield from secret_references(values, f"{section}.{name}")

    def _make(
        self, section: str, tables: Mapping[str, Mapping[str, Any]], state_directory: Path, faults: Faults
    ) -> dict[str, tuple[msgspec.Struct, Any]]:
        """Return the settings and the back end of each table that is valid."""
        kind, made = SECTIONS[section], {}
        for name, table in tables.items():
            path = f"{section}.{name}"
            back_end = self._back_ends[kind].get(table["plugin"])
            if back_end is None:
                known = names(self._back_ends[kind])
                faults.add(f"{path}.plugin", f"no installed plugin provides {table['plugin']!r}; allowed: {known}")
                continue
            core_keys = {"plugin", *CORE_KEYS.get(section, ())}
            own = {key: value for key, value in table.items() if key not in core_keys}
            settings = decode_struct(own, back_end.settings, path, faults)
            if settings is not None:
                try:
                    made[name] = settings, back_end.create(settings, BackEndContext(name, state_directory))
                except (ProvisionerError, ValueError, OSError) as error:
                    faults.add(path, redact(str(error)))
        return made


def load() -> Registry:
    """Return the registry of every plugin in the entry point group. Raises PluginError."""
    registry = Registry()
    origins: dict[Distribution | None, tuple[str, str]] = {}
    for entry in sorted(entry_points(group=PROJECT), key=lambda item: item.name):
        try:
            plugin = entry.load()
        except Exception as error:
            raise PluginError(f"plugin {entry.name} ({entry.value}) cannot be loaded: {error}") from error
        if entry.dist not in origins:  # each reading parses the whole METADATA
            metadata = entry.dist.metadata if entry.dist else {"Name": "", "Version": ""}
            origins[entry.dist] = metadata["Name"], metadata["Version"]
        registry.add(plugin, entry.name, *origins[entry.dist])
    return registry


def _registered(manager: pluggy.PluginManager, hook: str, name: str) -> Iterable[BackEnd[Any]]:
    """Return the back ends that ``manager``'s only plugin provides through the hook."""
    try:
        back_ends = [back_end for brought in getattr(manager.hook, hook)() for back_end in brought]
    except Exception as error:
        raise PluginError(f"plugin {name} cannot be used: its hook {hook} failed: {error}") from error
    for back_end in back_ends:
        if not isinstance(back_end, BackEnd):
            raise PluginError(f"plugin {name} cannot be used: its hook {hook} must return BackEnd, not {back_end!r}")
    return back_ends


def _default_target(targets: Mapping[str, Mapping[str, Any]]) -> str:
    marked = [name for name, table in targets.items() if table.get("default") is True]
    return marked[0] if marked else next(iter(targets), "")


def _signatures(sources: Mapping[str, Mapping[str, Any]], faults: Faults) -> Iterator[tuple[str, SignatureSettings]]:
    for name, table in sources.items():
        if "signature" in table:
            settings = decode_struct(table["signature"], SignatureSettings, f"sources.{name}.signature", faults)
            if settings is not None:
                yield name, settings
