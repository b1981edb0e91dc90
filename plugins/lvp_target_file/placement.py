"""Checks names, and decides what happens to an existing volume. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lvp_target_file.folder import SUFFIX
from provisioner.contracts import Placement
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError, VolumeNameError

if TYPE_CHECKING:
    from lvp_target_file.folder import Entry
    from lvp_target_file.settings import FileSettings
    from provisioner.contracts import StageRequest

# A file name holds 255 bytes; the staged one has the job's id (36) before the volume's name.
MAX_NAME = 200
# How far the size of a volume that is there may be from the one asked for, in parts of the latter.
SIZE_TOLERANCE = 0.05
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.+-]{{0,{MAX_NAME - 1}}}")


def check_name(volume: str) -> None:
    """Raise VolumeNameError if ``volume`` is not a valid name."""
    if not _NAME.fullmatch(volume):
        raise VolumeNameError(
            f"{volume[:80]!r} cannot be a volume's name: 1 to {MAX_NAME} letters, digits and any of '_.+-', "
            "beginning with a letter or a digit"
        )


def place(request: StageRequest, old: Entry | None, free_bytes: int, settings: FileSettings) -> Placement:
    """How ``request`` is placed where ``old`` stands and ``free_bytes`` are free.

    Raises VolumeExistsError or NoSpaceError. Whether ``old`` is in use is not looked at.
    """
    needed = _needed(request, settings)
    fits = needed <= free_bytes
    if old is not None:
        _check_replaceable(request, old, settings)
    if fits:
        return Placement.NEW if old is None else Placement.SWAP
    fits_instead = old is not None and needed <= free_bytes + old.status.st_blocks * 512
    if fits_instead and settings.replace == "in-place":
        return Placement.IN_PLACE
    raise NoSpaceError(f"volume {request.name} needs {needed} bytes and {settings.directory} has {free_bytes} free")


def _needed(request: StageRequest, settings: FileSettings) -> int:
    """How much must be free: all of it, or with ``overcommit`` what is going to be written as far as known."""
    return (request.data_bytes or 0) if settings.overcommit and not settings.preallocate else request.size_bytes


def _check_replaceable(request: StageRequest, old: Entry, settings: FileSettings) -> None:
    if not old.is_plain:
        raise VolumeExistsError(
            f"{request.name}{SUFFIX} is there and is no regular file with a single name; it is left alone"
        )
    if settings.replace == "refuse":
        raise VolumeExistsError(f"volume {request.name} is there and this target replaces none")
    if settings.only_own and old.provenance is None:
        raise VolumeExistsError(f"volume {request.name} is there and this service did not make it")
    if abs(old.status.st_size - request.size_bytes) > request.size_bytes * SIZE_TOLERANCE:
        raise VolumeExistsError(
            f"volume {request.name} is there with {old.status.st_size} bytes, more than 5% off the "
            f"{request.size_bytes} asked for"
        )
