"""Swaps an existing volume for a new one, removes it, or takes it over to be overwritten.

The check for openers and the move act as one step. The volume's file is held (``holders``), so that an open of it
waits and is detected, and it keeps a second name during the move. A last check follows; if the file was opened in
between, it gets its name back. A process that looked the path up before the move may open the file shortly after it, so
the last check waits for that long. An opener thus either has the old volume, and the move is undone, or comes after
the move.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from lvp_target_file.disk import sync, translated
from lvp_target_file.holders import held, users_of
from lvp_target_file.names import GONE, OLD, StagedFile, staged_name
from provisioner.contracts.errors import TargetError, VolumeExistsError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lvp_target_file.folder import Entry, Folder
    from lvp_target_file.holders import Hold
    from provisioner.contracts import StageRequest, VolumeUser

# Seconds. The kernel looks a path up and opens the file microseconds later; a process that is preempted in between runs
# again within this time. It is also the longest that an open of the volume waits.
_SETTLE = 0.02


def refuse_if_used(volume: str, users: list[VolumeUser]) -> None:
    """Raise VolumeInUseError if there are ``users``."""
    if users:
        raise VolumeInUseError(f"volume {volume} is in use by {', '.join(map(str, users[:5]))}; it was not changed")


def swap(
    folder: Folder, request: StageRequest, over: Entry, attributes: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Give the staged file the name of ``over``, and keep the file of ``over`` as ``old_of(request)``.

    ``attributes`` are set on the file of ``over``. If this raises VolumeInUseError or VolumeExistsError, nothing else
    has changed.
    """
    staged, aside = folder.stage_of(request), old_of(folder, request)
    discard(folder, StagedFile.read(aside))  # left by an earlier attempt of this job
    with holding(over) as hold, translated("replace", over.path):
        for name, value in attributes.items():
            os.setxattr(hold.fd, name, value)
            os.fsync(hold.fd)
        os.link(over.path, aside)
        refuse_if_used(over.name, hold.opened())
        staged.rename(over.path)
        time.sleep(_SETTLE)
        if users := hold.opened():
            aside.rename(over.path)
            sync(folder.path)
            refuse_if_used(over.name, users)
        sync(folder.path)


def remove(folder: Folder, entry: Entry) -> None:
    """Remove the volume. Raises VolumeInUseError and leaves it unchanged."""
    gone = folder.stages / staged_name(folder.owner, secrets.token_hex(4), entry.name, GONE)
    with holding(entry) as hold:
        _move_aside(folder, entry, hold, gone)
    discard(folder, StagedFile.read(gone))


def take_over(folder: Folder, request: StageRequest, entry: Entry) -> None:
    """Make the volume's own file the staged file, zeroed; its content is lost.

    If this raises VolumeInUseError, nothing has changed.
    """
    with holding(entry, os.O_RDWR) as hold:
        _move_aside(folder, entry, hold, folder.stage_of(request))
        with translated("overwrite", entry.path):
            os.ftruncate(hold.fd, 0)
            os.ftruncate(hold.fd, request.size_bytes)


def old_of(folder: Folder, request: StageRequest) -> Path:
    """Return the path that keeps the replaced volume's file until the swap is complete."""
    return folder.stages / staged_name(folder.owner, request.job_id, request.name, OLD)


def discard(folder: Folder, staged: StagedFile) -> bool:
    """Remove a file below ``.lvp/stage``; return False if it does not exist.

    Keep a replaced or removed volume that is open, and raise VolumeInUseError.
    """
    path = staged.path
    with translated("remove", path):
        try:
            last_name = path.lstat().st_nlink == 1
            if staged.kind in {OLD, GONE} and last_name and (users := users_of(path)):
                raise VolumeInUseError(
                    f"{staged.what} is in use by {', '.join(map(str, users[:5]))}; its file {path} is kept"
                )
            path.unlink()
        except FileNotFoundError:
            return False
        sync(folder.stages)
        return True


def _move_aside(folder: Folder, entry: Entry, hold: Hold, aside: Path) -> None:
    with translated("move aside", entry.path):
        folder.stages.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry.path.rename(aside)
        time.sleep(_SETTLE)
        if users := hold.opened():
            _restore_name(aside, entry.path)
            sync(folder.path)
            refuse_if_used(entry.name, users)
        sync(folder.path)


def _restore_name(aside: Path, path: Path) -> None:
    try:
        os.link(aside, path)
    except FileExistsError as error:
        raise TargetError(
            f"volume {path.name} is in use, but another file has taken its name; the volume's file is now {aside}"
        ) from error
    aside.unlink()


@contextmanager
def holding(entry: Entry, flags: int = os.O_RDONLY) -> Iterator[Hold]:
    """Hold the closed file of ``entry``. Raises VolumeInUseError, or VolumeExistsError if the file was replaced."""
    with translated("find the users of", entry.path), held(entry.path, flags) as hold:
        refuse_if_used(entry.name, hold.users)
        if not os.path.samestat(os.fstat(hold.fd), entry.status):
            raise VolumeExistsError(f"volume {entry.name} was removed or replaced while the job was running")
        yield hold
