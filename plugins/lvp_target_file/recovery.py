"""Cleans up what dead jobs left in the folder: staged volumes are removed, swapped ones finished or undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.contracts.errors import VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lvp_target_file.bases import BaseFiles
    from lvp_target_file.folder import Folder
    from lvp_target_file.kept import KeptFiles
    from lvp_target_file.names import StagedFile


def recover(
    folder: Folder, kept: KeptFiles, bases: BaseFiles, live_jobs: frozenset[str], *, every_owner: bool
) -> Sequence[str]:
    """Clean up after all jobs but ``live_jobs``; return what was done, one sentence each. Blocking.

    Files of another installation are left alone, unless ``every_owner``.
    """
    dead = [file for file in folder.staged() if file.job not in live_jobs]
    actions = [_settled(file, folder, kept, every_owner=every_owner) for file in dead]
    done = [action for action in actions if action is not None]
    return [*done, *kept.recover(), *bases.recover()]


def _settled(file: StagedFile, folder: Folder, kept: KeptFiles, *, every_owner: bool) -> str | None:
    """Clean up a file that no live job owns. Return what was done, or None if the file is already gone."""
    if file.owner not in {"", folder.owner} and not every_owner:
        return f"left {file.what} alone: it belongs to another installation ({file.owner})"
    try:
        return kept.settle(file)
    except VolumeInUseError as error:
        return f"left {file.path.name} alone: {error.message}"
