"""Space for new volumes: what is free, and what bases and kept volumes would free. Blocking: call it in a thread.

Bases go first, the least recently used before others, since an image can be copied again; then kept volumes, as the
settings allow. Only blocks that no other file shares count, and a file that shares all of its blocks stays: its removal
frees nothing. XFS and btrfs free the blocks of a removed file a little later, so its size counts at once.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from provisioner.contracts import GIB
from provisioner.contracts.errors import NoSpaceError, NotFoundError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_target_file.bases import BaseFiles
    from lvp_target_file.folder import Folder
    from lvp_target_file.kept import KeptFiles
    from provisioner.contracts import Capacity


# Seconds. XFS begins to free the blocks of a removed file after some milliseconds.
_SETTLE = 0.1


class Room:
    """The space of one folder."""

    def __init__(self, folder: Folder, kept: KeptFiles, bases: BaseFiles) -> None:
        self._folder, self._kept, self._bases = folder, kept, bases

    def capacity(self) -> Capacity:
        """Return the space; kept volumes that a job may remove are freeable."""
        return replace(self._folder.capacity(), freeable_bytes=self._kept.freeable())

    def available(self, needed_bytes: int, sparing: str | None = None) -> int:
        """Return the bytes that a job can have: free ones, those of kept volumes and, if it needs them, of bases.

        ``sparing``: the digest of bases that stay.
        """
        capacity = self.capacity()
        available = capacity.free_bytes + capacity.freeable_bytes
        return available if available >= needed_bytes else available + self._bases.own_bytes(sparing)

    def make(self, needed_bytes: int, sparing: str | None = None) -> None:
        """Remove bases and kept volumes until ``needed_bytes`` are free. Raises NoSpaceError if that is not enough.

        ``sparing``: the digest of bases that stay.
        """
        free = self._folder.capacity().free_bytes
        removed = True
        while removed and free < needed_bytes:
            removed = False
            for freed in self._removals(sparing):
                removed, free = True, max(free + freed, self._folder.capacity().free_bytes)
                if free >= needed_bytes:
                    return
            # What shared blocks with a removed file has them alone now, on XFS a moment later.
            time.sleep(_SETTLE if removed else 0)
        if free < needed_bytes:
            raise NoSpaceError(
                f"{needed_bytes / GIB:.2f} GiB are needed, but {self._folder.path} has {free / GIB:.2f} GiB free"
            )

    def keep_bases(self, most: int) -> None:
        """Evict bases until there are at most ``most``, as far as they may go."""
        excess = self._bases.count() - most
        for base in self._bases.least_used_first()[: max(0, excess)]:
            self._bases.evict(base)

    def _removals(self, sparing: str | None) -> Iterator[int]:
        """Remove what may go, one by one; yield the freed bytes of each."""
        for base in self._bases.least_used_first(sparing):
            if (freed := self._bases.bytes_of(base)) and self._bases.evict(base):
                yield freed
        for kept_as, freed in self._kept.removable_bytes():
            if not freed:
                continue
            try:
                self._kept.remove(kept_as)
            except (NotFoundError, VolumeInUseError):
                continue
            yield freed
