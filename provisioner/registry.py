"""The pluggy host: finds installed back ends and creates those that the configuration names.

Loads plugins and checks hooks, names and settings. Knows no back end by name.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pluggy
import structlog

from provisioner.config import (
    Config,
    Faults,
    SignatureSettings,
    decode_struct,
    decode_values,
    plugin_tables,
    secret_references,
    show,
)
from provisioner.config.images import signature_urls, urls_of
from provisioner.contracts import PROJECT, BackEnd, BackEndContext, ImageUrl, hookspecs
from provisioner.contracts.errors import (
    ConfigError,
    InvalidRequestError,
    PluginError,
    ProvisionerError,
    UrlNotAllowedError,
)
from provisioner.contracts.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from provisioner.contracts import BlockTarget, Converter, Guard, ImageSource, Observer, SecretRef

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


@dataclass(slots=True)
class BackEnds:
    """The back ends of one configuration, ready for use."""

    sources: Mapping[str, ImageSource] = field(default_factory=dict)
    converters: Mapping[str, Converter] = field(default_factory=dict)  # by image format
    targets: Mapping[str, BlockTarget] = field(default_factory=dict)
    guards: Mapping[str, Guard] = field(default_factory=dict)
    observers: Mapping[str, Observer] = field(default_factory=dict)
    default_target: str = ""
    # The installed converters by the formats they read, for what is not configured.
    readers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # The secrets that the tables refer to, by key.
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    # The signatures that sources demand, by the source's name.
    signatures: Mapping[str, SignatureSettings] = field(default_factory=dict)

    def source_for(self, image_url: ImageUrl) -> ImageSource:
        """Return the source configured for ``image_url``. Raises UrlNotAllowedError."""
        for source in self.sources.values():
            if source.owns(image_url):
                return source
        raise UrlNotAllowedError(f"{image_url} belongs to no configured source; nothing was fetched")

    def signature_for(self, source: ImageSource) -> SignatureSettings | None:
        """Return the signature that the source demands, or None. Raises LookupError if it is none of the sources."""
        names = [name for name, one in self.sources.items() if one is source]
        if not names:  # never a reason to demand less
            raise LookupError("the source is none of the configured ones")
        return self.signatures.get(names[0])

    def target(self, name: str | None) -> BlockTarget:
        """Return the target of that name, or the default one. Raises InvalidRequestError."""
        found = self.targets.get(name or self.default_target)
        if found is None:
            raise InvalidRequestError(f"no block target {name!r} is configured; there are: {_names(self.targets)}")
        return found

    def converter(self, image_format: str) -> Converter:
        """Return the converter for that image format. Raises InvalidRequestError."""
        found = self.converters.get(image_format)
        if found is not None:
            return found
        if readers := self.readers.get(image_format):
            raise InvalidRequestError(
                f"image_type {image_format!r} is not configured; {' or '.join(readers)} can read it: "
                f'add {image_format} = "{readers[0]}" to [converters]'
            )
        raise InvalidRequestError(f"image_type {image_format!r} is not known; there are: {_names(self.converters)}")

    async def aclose(self) -> None:
        """Close every back end, even if others fail."""
        groups = (self.observers, self.guards, self.converters, self.sources, self.targets)
        for back_end in dict.fromkeys(back_end for group in groups for back_end in group.values()):
            try:
                await back_end.aclose()
            except Exception as error:  # noqa: BLE001 - the boundary: one failure must not keep the others open
                log.warning("a back end could not be closed", back_end=type(back_end).__name__, reason=str(error))


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
        _check_prewarm(document, built, faults, sources_known=known)
        _check_images(document, built, faults, sources_known=known)
        _check_signatures(tables["sources"], built, faults)
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
                known = _names(self._back_ends[kind])
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
    for entry in sorted(entry_points(group=PROJECT), key=lambda item: item.name):
        try:
            plugin = entry.load()
        except Exception as error:
            raise PluginError(f"plugin {entry.name} ({entry.value}) cannot be loaded: {error}") from error
        distribution = entry.dist
        registry.add(
            plugin, entry.name, distribution.name if distribution else "", distribution.version if distribution else ""
        )
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


def _check_prewarm(document: Mapping[str, Any], back_ends: BackEnds, faults: Faults, *, sources_known: bool) -> None:
    """Report images to prewarm that no source serves or no converter reads; they would fail at each attempt."""
    cache = document.get("cache")
    images = cache.get("prewarm") if isinstance(cache, dict) else None
    formats = plugin_tables(document)["converters"]
    known = document["images"] if isinstance(document.get("images"), dict) else {}
    for number, image in enumerate(images if isinstance(images, list) else ()):
        path, (url, image_type) = f"cache.prewarm[{number}]", _prewarmed(image)
        named = image.get("image") if isinstance(image, dict) else None
        if isinstance(named, str) and named not in known:
            faults.add(f"{path}.image", f"there is no image named {show(named)}; there are: {_names(known)}")
        if image_type not in formats:
            faults.add(f"{path}.image_type", f"found {show(image_type)}, allowed: {_names(formats)}")
        if sources_known and url and not any(source.owns(url) for source in back_ends.sources.values()):
            faults.add(f"{path}.url", f"{url} belongs to no configured source")


def _check_images(document: Mapping[str, Any], back_ends: BackEnds, faults: Faults, *, sources_known: bool) -> None:
    """Report named images that no source serves or no converter reads."""
    formats = plugin_tables(document)["converters"]
    for name, image in document["images"].items() if isinstance(document.get("images"), dict) else ():
        if not isinstance(image, dict):
            continue
        image_type = image.get("image_type", "qcow2")
        if isinstance(image_type, str) and image_type not in formats:
            faults.add(f"images.{name}.image_type", f"found {show(image_type)}, allowed: {_names(formats)}")
        for key, text in urls_of(image):
            with suppress(InvalidRequestError):  # reported by ``decode``
                url = ImageUrl.parse(text)
                if sources_known and not any(source.owns(url) for source in back_ends.sources.values()):
                    faults.add(f"images.{name}.{key}", f"{url} belongs to no configured source")


def _check_signatures(tables: Mapping[str, Mapping[str, Any]], back_ends: BackEnds, faults: Faults) -> None:
    """Report signatures that a source cannot fetch."""
    for name, source in back_ends.sources.items():
        for key, text in signature_urls(tables[name]):
            with suppress(InvalidRequestError):  # reported with the table
                url = ImageUrl.parse(text)
                if not source.owns(url):
                    faults.add(f"sources.{name}.{key}", f"{url} does not belong to this source")


def _prewarmed(image: object) -> tuple[ImageUrl | None, str]:
    """Return the url, None if it is malformed, and the type of an image to prewarm."""
    table = image if isinstance(image, dict) else {}
    text, image_type = table.get("url"), table.get("image_type") or "qcow2"
    try:
        url = ImageUrl.parse(text if isinstance(text, str) else "")
    except InvalidRequestError:
        url = None
    return url, image_type if isinstance(image_type, str) else "qcow2"


def _names(known: Mapping[str, object]) -> str:
    return ", ".join(sorted(known)) or "none"
