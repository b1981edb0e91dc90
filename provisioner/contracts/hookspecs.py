"""The hooks a plugin may implement. They register classes that implement the typed interfaces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

import msgspec
import pluggy

from provisioner.contracts.ownership import PlaceLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from provisioner.contracts.converter import Converter
    from provisioner.contracts.guard import Guard, Observer
    from provisioner.contracts.source import ImageSource
    from provisioner.contracts.target import BlockTarget
    from provisioner.contracts.types import Finding

PROJECT = "libvirt_volume_provisioner"
"""The name of the pluggy project and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")


class NoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a back end without settings."""


@runtime_checkable
class NamesFiles(Protocol):
    """Settings that name files or folders, which ``lvp config check`` and ``lvp doctor`` look at."""

    def check_files(self) -> Mapping[str, Finding]:
        """Return the findings by key. Blocking; changes nothing."""


@dataclass(frozen=True, slots=True)
class BackEndContext:
    """What the daemon passes to a new back end. ``name`` is the name of its table in the configuration."""

    name: str
    state_directory: Path

    def place_lock(self, path: Path, place: str, *, shared: bool = False) -> PlaceLock:
        """Return an unlocked lock with the file ``path`` for ``place``, such as "the folder /images".

        Its ``take`` also returns the installation's id, with which a target marks the volumes it stages.
        """
        return PlaceLock(path, place, self.state_directory, shared=shared)


@dataclass(frozen=True, slots=True)
class BackEnd(Generic[T]):
    """A back end that a plugin provides.

    ``name`` is the value of ``plugin = "..."`` in the configuration. ``create(settings, context)`` returns an instance
    and must not touch disk or network. ``settings`` is a frozen ``msgspec.Struct`` with
    ``forbid_unknown_fields=True``; the table in the configuration is validated against it when it is loaded.
    """

    name: str
    create: Callable[..., T]
    settings: type[msgspec.Struct] = field(default=NoSettings)


@hookspec
def lvp_image_sources() -> Sequence[BackEnd[ImageSource]]:  # type: ignore[empty-body]
    """Return the image sources that the plugin provides."""


@hookspec
def lvp_converters() -> Sequence[BackEnd[Converter]]:  # type: ignore[empty-body]
    """Return the converters that the plugin provides."""


@hookspec
def lvp_block_targets() -> Sequence[BackEnd[BlockTarget]]:  # type: ignore[empty-body]
    """Return the block targets that the plugin provides."""


@hookspec
def lvp_guards() -> Sequence[BackEnd[Guard]]:  # type: ignore[empty-body]
    """Return the guards that the plugin provides."""


@hookspec
def lvp_observers() -> Sequence[BackEnd[Observer]]:  # type: ignore[empty-body]
    """Return the observers that the plugin provides."""
