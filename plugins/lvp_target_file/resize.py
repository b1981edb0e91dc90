"""Grows the file of a volume. The new part is a hole, which reads as zeros. Blocking: call it in a thread.

Of a qcow2 file only the header changes, by one write. What that cannot do is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lvp_target_file import qcow2, swaps
from lvp_target_file.disk import translated
from lvp_target_file.names import BACKING
from provisioner.contracts import GIB
from provisioner.contracts.errors import NoSpaceError, ResizeError, VolumeExistsError

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
    with swaps.holding(entry, os.O_RDWR) as hold, translated("resize", entry.path):
        check()
        if folder.format.size_of_open(hold.fd) != entry.size_bytes:
            raise VolumeExistsError(f"volume {entry.name} was resized by another program meanwhile; it was not changed")
        if folder.format.name == "qcow2":
            _grow_image(folder, entry, hold.fd, size, settings)
        else:
            _grow_file(entry, hold.fd, size, settings, check)


def _grow_file(entry: Entry, fd: int, size: int, settings: FileSettings, check: Callable[[], None]) -> None:
    old_size = entry.size_bytes
    try:
        os.ftruncate(fd, size)
        for start in range(old_size, size if settings.preallocate else old_size, _STEP):
            check()
            os.posix_fallocate(fd, start, min(_STEP, size - start))
        os.fsync(fd)
    except BaseException:
        os.ftruncate(fd, old_size)
        raise


def _grow_image(folder: Folder, entry: Entry, fd: int, size: int, settings: FileSettings) -> None:
    if settings.preallocate:
        raise ResizeError(f"volume {entry.name} is a qcow2 file with preallocate = true, which only qemu-img can grow")
    header = qcow2.read_header(fd)
    backing = "" if header is None else header.backing
    # Where a backing file is longer than the disk was, its data would appear in the new part.
    if backing and not _is_base_within(backing, folder, entry.size_bytes):
        raise ResizeError(f"volume {entry.name} refers to {backing!r}, which is no base of this target; use qemu-img")
    qcow2.grow(fd, size)


def _is_base_within(backing: str, folder: Folder, size: int) -> bool:
    try:
        return Path(backing).parent == folder.path / BACKING and Path(backing).stat().st_size <= size
    except (OSError, ValueError):
        return False


def _check_space(folder: Folder, entry: Entry, size: int, settings: FileSettings) -> None:
    more = size - entry.size_bytes
    free = folder.capacity().free_bytes
    if more > free and (settings.preallocate or not settings.overcommit):
        raise NoSpaceError(
            f"volume {entry.name} needs {more / GIB:.2f} GiB more, but {settings.directory} has "
            f"{free / GIB:.2f} GiB free"
        )
