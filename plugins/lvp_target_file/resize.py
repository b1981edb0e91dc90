"""Grows the file of a volume. The new part is a hole, which reads as zeros. Blocking: call it in a thread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lvp_target_file import swaps
from lvp_target_file.disk import translated
from provisioner.contracts import GIB
from provisioner.contracts.errors import NoSpaceError, VolumeExistsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lvp_target_file.folder import Entry, Folder
    from lvp_target_file.settings import FileSettings

# Bytes per fallocate call; cancellation is checked between calls.
_STEP = 1024**3


def grow(folder: Folder, entry: Entry, size: int, settings: FileSettings, check: Callable[[], None]) -> None:
    """Grow the closed file of ``entry`` to ``size`` bytes. ``check`` may raise to stop the allocation.

    Raises NoSpaceError, VolumeInUseError or VolumeExistsError; the file then has its old size. A crash leaves it with
    the old or the new size; in the latter case, ``preallocate`` may be incomplete.
    """
    _check_space(folder, entry, size, settings)
    old_size = entry.status.st_size
    with swaps.holding(entry, os.O_RDWR) as hold, translated("resize", entry.path):
        check()
        if os.fstat(hold.fd).st_size != old_size:
            raise VolumeExistsError(f"volume {entry.name} was resized by another program meanwhile; it was not changed")
        try:
            os.ftruncate(hold.fd, size)
            for start in range(old_size, size if settings.preallocate else old_size, _STEP):
                check()
                os.posix_fallocate(hold.fd, start, min(_STEP, size - start))
            os.fsync(hold.fd)
        except BaseException:
            os.ftruncate(hold.fd, old_size)
            raise


def _check_space(folder: Folder, entry: Entry, size: int, settings: FileSettings) -> None:
    more = size - entry.status.st_size
    free = folder.capacity().free_bytes
    if more > free and (settings.preallocate or not settings.overcommit):
        raise NoSpaceError(
            f"volume {entry.name} needs {more / GIB:.2f} GiB more, but {settings.directory} has "
            f"{free / GIB:.2f} GiB free"
        )
