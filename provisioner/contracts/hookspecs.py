"""The hooks a plugin may implement. They register classes; behaviour is on the typed interfaces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
import pluggy

from provisioner.contracts.ownership import PlaceLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from provisioner.contracts.converter import Converter
    from provisioner.contracts.guard import Guard, Observer
    from provisioner.contracts.source import ImageSource
    from provisioner.contracts.target import BlockTarget

PROJECT = "libvirt_volume_provisioner"
"""Name of the pluggy project and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")


class NoSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a back end that has none."""


@dataclass(frozen=True, slots=True)
class BackEndContext:
    """What the daemon tells a back end when it makes it. ``name`` is its table's name in the config."""

    name: str
    state_directory: Path

    def place_lock(self, path: Path, place: str, *, shared: bool = False) -> PlaceLock:
        """Return the lock ``path`` of ``place``, such as "the folder /images"; touches nothing yet.

        Taking it also gives the installation's id, which a target writes on what it stages.
        """
        return PlaceLock(path, place, self.state_directory, shared=shared)


@dataclass(frozen=True, slots=True)
class BackEnd(Generic[T]):
    """One back end a plugin brings.

    ``name`` is what ``plugin = "..."`` says in the config, ``create(settings, context)`` makes an instance and
    must not touch disk or network, ``settings`` is a frozen ``msgspec.Struct`` with
    ``forbid_unknown_fields=True``: the config's table is checked against it, key by key, when it is loaded.
    """

    name: str
    create: Callable[..., T]
    settings: type[msgspec.Struct] = field(default=NoSettings)


@hookspec
def lvp_image_sources() -> Sequence[BackEnd[ImageSource]]:  # type: ignore[empty-body]
    """Image sources this plugin brings."""


@hookspec
def lvp_converters() -> Sequence[BackEnd[Converter]]:  # type: ignore[empty-body]
    """Converters this plugin brings."""


@hookspec
def lvp_block_targets() -> Sequence[BackEnd[BlockTarget]]:  # type: ignore[empty-body]
    """Block targets this plugin brings."""


@hookspec
def lvp_guards() -> Sequence[BackEnd[Guard]]:  # type: ignore[empty-body]
    """Guards this plugin brings."""


@hookspec
def lvp_observers() -> Sequence[BackEnd[Observer]]:  # type: ignore[empty-body]
    """Observers this plugin brings."""
