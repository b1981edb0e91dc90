"""The file target's settings, each default with its reason."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

import msgspec


class FileSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of ``[targets.NAME]`` with ``plugin = "file"``.

    ``directory``: where the volumes stand; absolute, must exist (it may be a mount that is not there yet).
    """

    directory: str

    # Whether a missing folder is made at the start. Not by default: a mount that failed must not be written beneath.
    make_directory: bool = False

    # What happens to a volume that is there. Swapping keeps the old one until the new one is complete.
    # "in-place" swaps as well, and gives the old one's space away only where there is no room for both.
    replace: Literal["swap", "in-place", "refuse"] = "swap"

    # Sparse files take what the image holds; allocating all at once is for folders where a guest must never
    # meet a full filesystem.
    preallocate: bool = False

    # Whether the full size must be free when the volume is made. A job that fails today is better than a guest
    # that is paused at night because several sparse files grew into the same free space. With overcommit only
    # what the image holds must fit; preallocated volumes always need all of it.
    overcommit: bool = False

    # Whether only volumes that this service made may be replaced. Others may by default, if their size fits.
    only_own: bool = False

    # Whether other installations (state directories) may work in the folder at the same time, as on storage that
    # several hosts share; each recovers only what it staged itself. By default a second one is taken for a mistake.
    shared: bool = False

    def __post_init__(self) -> None:
        if not PurePath(self.directory).is_absolute():
            raise ValueError(f"directory must be an absolute path, not {self.directory!r}")
