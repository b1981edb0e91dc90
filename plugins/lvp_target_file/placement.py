"""Checks volume names and decides how a new volume is placed. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lvp_target_file.formats import FORMATS
from provisioner.contracts import GIB, Placement
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError, VolumeNameError

if TYPE_CHECKING:
    from lvp_target_file.folder import Entry
    from lvp_target_file.settings import FileSettings
    from provisioner.contracts import StageRequest

# A file name has at most 255 bytes. A staged name puts the owner and the job's id (36) before the volume's name.
MAX_NAME = 200
# The largest accepted difference between existing and requested size, as a fraction of the requested size.
SIZE_TOLERANCE = 0.05
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.+-]{{0,{MAX_NAME - 1}}}")


def check_name(volume: str) -> None:
    """Raise VolumeNameError if ``volume`` is not a valid name."""
    if not _NAME.fullmatch(volume):
        raise VolumeNameError(
            f"{volume[:80]!r} is not a valid volume name: use 1 to {MAX_NAME} letters, digits and '_.+-', "
            "starting with a letter or digit"
        )


def place(
    request: StageRequest, old: Entry | None, free_bytes: int, settings: FileSettings, shared_bytes: int = 0
) -> Placement:
    """Return the placement for ``request`` with ``old`` as the existing entry and ``free_bytes`` of free space.

    ``shared_bytes`` of the existing entry belong to other files too: overwriting it does not free them.

    Raises VolumeExistsError or NoSpaceError. Does not check whether ``old`` is in use.
    """
    needed = needed_bytes(request, settings)
    fits = needed <= free_bytes
    if old is not None:
        _check_replaceable(request, old, settings)
    if fits:
        return Placement.NEW if old is None else Placement.SWAP
    fits_in_place = old is not None and needed <= free_bytes + old.status.st_blocks * 512 - shared_bytes
    if fits_in_place and settings.replace == "in-place":
        return Placement.IN_PLACE
    sparse = not settings.overcommit and not settings.preallocate
    raise NoSpaceError(
        f"volume {request.name} needs {needed / GIB:.2f} GiB, but {settings.directory} has "
        f"{free_bytes / GIB:.2f} GiB free"
        + ("; the target's setting overcommit = true would ask for the image's data only" if sparse else "")
    )


def needed_bytes(request: StageRequest, settings: FileSettings) -> int:
    """Return the bytes that must be free: the full size or, with ``overcommit``, the image's data if known.

    The tables of the volume's format come on top.
    """
    extra = FORMATS[settings.format].extra_bytes(request.size_bytes)
    sparse = settings.overcommit and not settings.preallocate
    return extra + ((request.data_bytes or 0) if sparse else request.size_bytes)


def _check_replaceable(request: StageRequest, old: Entry, settings: FileSettings) -> None:
    if not old.is_plain:
        raise VolumeExistsError(
            f"{old.path.name} already exists and is not a regular file with a single link; remove it or choose "
            "another name"
        )
    if settings.replace == "refuse":
        raise VolumeExistsError(
            f'volume {request.name} already exists, and the target\'s setting replace = "refuse" keeps it'
        )
    if old.provenance is None and (settings.only_own or settings.foreign == "refuse"):
        setting = "only_own = true" if settings.only_own else 'foreign = "refuse"'
        raise VolumeExistsError(
            f"volume {request.name} was not created by this service, and the target's setting {setting} keeps it"
        )
    if abs(old.size_bytes - request.size_bytes) > request.size_bytes * SIZE_TOLERANCE:
        raise VolumeExistsError(
            f"volume {request.name} has {old.size_bytes / GIB:.2f} GiB, more than 5% off the requested "
            f"{request.size_bytes / GIB:.2f} GiB; remove it or request its size"
        )
