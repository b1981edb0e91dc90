"""How a volume that is there gives way: swapped for a new one, removed, or taken over to be overwritten.

The look for openers and the move are one. The volume's file is held (``holders``), so that an open of it waits and
shows; it keeps a second name while the move is made; a last look follows, and a file that was opened in between gets
its name back. A path that was looked up before the move may reach the file a moment after it, so the last look waits
for that moment. An opener therefore has the old volume, and the move is refused, or it comes after the move.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lvp_target_file.disk import sync, translated
from lvp_target_file.holders import held, users_of
from lvp_target_file.names import GONE, OLD, StagedFile, staged_name
from provisioner.contracts.errors import TargetError, VolumeExistsError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lvp_target_file.folder import Entry, Folder
    from lvp_target_file.holders import Hold
    from provisioner.contracts import StageRequest, VolumeUser

# Between looking a path up and opening what it leads to lie microseconds; a process that is preempted there runs again
# within this, in seconds. An open of the volume waits as long at most.
_SETTLE = 0.02


def refuse_if_used(volume: str, users: list[VolumeUser]) -> None:
    """Raise VolumeInUseError if there are ``users``."""
    if users:
        raise VolumeInUseError(f"volume {volume} is in use by {', '.join(map(str, users[:5]))}; it is not touched")


def swap(folder: Folder, request: StageRequest, over: Entry) -> None:
    """Give the staged file the name of ``over``, whose file is left under ``old_of(request)``.

    Raises VolumeInUseError or VolumeExistsError, and then all is as before.
    """
    staged, aside = folder.stage_of(request), old_of(folder, request)
    discard(folder, StagedFile.read(aside))  # of an earlier attempt of this very job
    with _holding(over) as hold, translated("replace", over.path):
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
    with _holding(entry) as hold:
        _move_aside(folder, entry, hold, gone)
    discard(folder, StagedFile.read(gone))


def take_over(folder: Folder, request: StageRequest, entry: Entry) -> None:
    """Make the volume's own file the staged one, all zeros: its content is gone.

    Raises VolumeInUseError, and then all is as before.
    """
    with _holding(entry, os.O_RDWR) as hold:
        _move_aside(folder, entry, hold, folder.stage_of(request))
        with translated("overwrite", entry.path):
            os.ftruncate(hold.fd, 0)
            os.ftruncate(hold.fd, request.size_bytes)


def old_of(folder: Folder, request: StageRequest) -> Path:
    """Where the replaced volume's file stands until the new one is known to stand."""
    return folder.stages / staged_name(folder.owner, request.job_id, request.name, OLD)


def discard(folder: Folder, staged: StagedFile) -> bool:
    """Remove a file below ``.lvp/stage``. False if it is not there.

    A replaced or removed volume that is open after all is kept for its user. Raises VolumeInUseError.
    """
    path = staged.path
    with translated("remove", path):
        try:
            last_name = path.lstat().st_nlink == 1
            if staged.kind and last_name and (users := users_of(path)):
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
            _give_back(aside, entry.path)
            sync(folder.path)
            refuse_if_used(entry.name, users)
        sync(folder.path)


def _give_back(aside: Path, path: Path) -> None:
    try:
        os.link(aside, path)
    except FileExistsError as error:
        raise TargetError(
            f"volume {path.name} is in use and could not get its name back, which another file has now; it is {aside}"
        ) from error
    aside.unlink()


@contextmanager
def _holding(entry: Entry, flags: int = os.O_RDONLY) -> Iterator[Hold]:
    """Hold the file of ``entry``, found closed. Raises VolumeInUseError, or VolumeExistsError if it is another now."""
    with translated("look who uses", entry.path), held(entry.path, flags) as hold:
        refuse_if_used(entry.name, hold.users)
        if not os.path.samestat(os.fstat(hold.fd), entry.status):
            raise VolumeExistsError(f"volume {entry.name} was replaced by something else while the job ran")
        yield hold
