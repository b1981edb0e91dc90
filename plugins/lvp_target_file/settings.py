"""The settings of the file target, with reasons for the defaults."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from provisioner.contracts import KeepingSettings, refuse


class FileSettings(KeepingSettings, frozen=True, forbid_unknown_fields=True):
    """Keys of ``[targets.NAME]`` with ``plugin = "file"``.

    ``directory`` is the folder of the volumes, an absolute path. It must exist, but may be mounted later.
    """

    directory: str

    # Whether to create a missing folder at the start. Off by default: if a mount failed, nothing may be written to
    # its mount point.
    make_directory: bool = False

    # What to do with an existing volume. "swap" keeps the old one until the new one is complete. "in-place" does the
    # same if there is space for both, and overwrites the old one if not.
    replace: Literal["swap", "in-place", "refuse"] = "swap"

    # The format of volumes. Raw files are the fastest and need no tables; qcow2 is for guests whose definition wants
    # it, and has clones on any file system.
    format: Literal["raw", "qcow2"] = "raw"

    # Whether to allocate the full size at once. A sparse file takes only the space of the image's data, but a guest
    # may then run into a full filesystem.
    preallocate: bool = False

    # Whether a volume may be created without its full size being free. Off by default: a job that fails now is better
    # than a guest that is paused later because several sparse files grew into the same free space. With overcommit
    # only the image's data must fit. Preallocated volumes always need their full size.
    overcommit: bool = False

    # Whether volumes are cloned in constant time if the file system has reflinks. Each image in use then has a base,
    # with which its volumes share their blocks. A qcow2 volume is then an overlay of its base, on any file system, and
    # cannot be read without it; otherwise it stands alone. Preallocated volumes are never cloned: their space must be
    # their own.
    clone: bool = True

    # A base takes space as long as it exists; most hosts use fewer than twenty images.
    max_bases: int = 20

    # Whether only volumes that this service created may be replaced; the same as foreign = "refuse". By default others
    # may too, if their size fits.
    only_own: bool = False

    # Whether other installations (state directories) may use the folder at the same time, as on storage that several
    # hosts share. Each recovers only what it staged itself. By default a second installation is refused.
    shared: bool = False

    def __post_init__(self) -> None:
        relative = not PurePath(self.directory).is_absolute()
        wrong = [f"directory must be an absolute path, not {self.directory!r}"] if relative else []
        wrong += ["max_bases must be at least 1"] if self.max_bases < 1 else []
        refuse([*wrong, *self.keeping_faults()])
