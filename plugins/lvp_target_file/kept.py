"""Replaced volumes that are kept aside: files in ``.lvp/kept``, and an extended attribute that says until when.

A replaced file gets the attribute before the swap, while it still has its name. After the swap it is renamed from
``.lvp/stage`` to ``.lvp/kept``. A crash between the two leaves a file with one link and the attribute of its job, which
recovery moves on; with two links, the swap did not happen. The provenance stays in its own attribute, so the file is
ours or foreign as before.

Methods block briefly: call them in a thread. OSErrors are raised as the target's errors.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import trio

from lvp_target_file import reflink, swaps
from lvp_target_file.disk import opened, sync, translated
from lvp_target_file.folder import Entry, read_mark, rename_new
from lvp_target_file.formats import FORMATS
from lvp_target_file.holders import users_of
from lvp_target_file.names import OLD, StagedFile
from provisioner.contracts import (
    RESTORE_KEEP,
    KeptVolume,
    Owner,
    Provenance,
    Replaced,
    StageRequest,
    blockdev,
    removable,
)
from provisioner.contracts.errors import NotFoundError, VolumeExistsError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lvp_target_file.folder import Folder
    from lvp_target_file.settings import FileSettings

ATTRIBUTE = "user.lvp.kept"


class KeptMark(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of the attribute. ``kept_as`` begins with '@', which no volume name does.

    ``image_format`` is that of volumes when it was replaced: the bytes of a raw one must never be read as a header.
    """

    kept_as: str
    volume: str
    job_id: str
    replaced_at: float
    kept_until: float
    image_format: str = "raw"


_DECODER = msgspec.json.Decoder(KeptMark)


@dataclass(frozen=True, slots=True)
class _KeptFile:
    path: Path
    status: os.stat_result
    mark: KeptMark
    provenance: Provenance | None
    size_bytes: int

    def volume(self, target: str) -> KeptVolume:
        mark = self.mark
        return KeptVolume(
            mark.kept_as, mark.volume, target, self.size_bytes, mark.job_id, mark.replaced_at, mark.kept_until,
            self.provenance,
        )  # fmt: skip


class KeptFiles:
    """The kept volumes of one folder."""

    def __init__(self, folder: Folder, target: str, settings: FileSettings) -> None:
        self.path = folder.path / ".lvp" / "kept"
        self._folder, self._target, self._settings = folder, target, settings

    def volumes(self) -> list[KeptVolume]:
        """Return every kept volume."""
        with self._folder.looking(), translated("list", self.path):
            return [file.volume(self._target) for file in self._files() if file.status.st_nlink == 1]

    def freeable(self) -> int:
        """Return the bytes that the kept volumes take which a job may remove."""
        return sum(freed for _, freed in self.removable_bytes())

    def removable_bytes(self) -> Iterator[tuple[str, int]]:
        """Yield the kept volumes that a job may remove, in that order, and the bytes that each would free.

        Each is looked at when the one before it may be gone.
        """
        for volume in removable(self.volumes(), self._settings):
            path = self.path / volume.kept_as
            with translated("inspect", path):
                try:
                    yield volume.kept_as, reflink.own_bytes(path)
                except FileNotFoundError:  # removed meanwhile
                    continue

    def refuse_unless_blank(self, old: Entry) -> None:
        """Raise VolumeExistsError if a foreign volume, which could not be kept, has content."""
        if old.provenance is not None or self._settings.foreign != "keep":
            return
        with translated("read", old.path), opened(old.path, os.O_RDONLY) as fd:
            if blockdev.is_blank(fd, trio.from_thread.check_cancelled):
                return
        raise VolumeExistsError(
            f"volume {old.name} was not created by this service and there is no room to keep it; free some space, or "
            'set foreign = "overwrite" to overwrite such volumes'
        )

    def replace(self, request: StageRequest, over: Entry, least_seconds: float = 0.0) -> Replaced:
        """Swap the staged file for ``over``; ``settle`` moves that aside. ``least_seconds``: keep it at least so long.

        If this raises VolumeInUseError or VolumeExistsError, nothing has changed.
        """
        owner = Owner.of(over.provenance)
        seconds = max(self._settings.keep_seconds(owner), least_seconds)
        if not seconds:
            swaps.swap(self._folder, request, over)
            return Replaced(over.name, owner)
        now, kept_as = time.time(), f"@kept.{secrets.token_hex(8)}.{over.name}"
        mark = KeptMark(kept_as, over.name, request.job_id, now, now + seconds, self._folder.format.name)
        swaps.swap(self._folder, request, over, {ATTRIBUTE: msgspec.json.encode(mark)})
        return Replaced(over.name, owner, kept_as, mark.kept_until)

    def settle(self, staged: StagedFile) -> str | None:
        """Keep a file below ``.lvp/stage`` if it was replaced and is to be kept, else remove it.

        Return what was done, or None if the file does not exist. Raises VolumeInUseError if it is open and not kept.
        """
        mark = self._mark_of_replaced(staged)
        if mark is None:
            return f"removed {staged.what}" if swaps.discard(self._folder, staged) else None
        with translated("keep", staged.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            staged.path.rename(self.path / mark.kept_as)
            sync(self.path)
            sync(self._folder.stages)
        return f"kept {staged.what} as {mark.kept_as}"

    def remove(self, kept_as: str) -> None:
        """Remove a kept volume. Raises NotFoundError or VolumeInUseError."""
        file = self._find(kept_as)
        with translated("remove", file.path):
            try:
                if users := users_of(file.path):
                    who = ", ".join(map(str, users[:5]))
                    raise VolumeInUseError(f"the kept volume {kept_as} is in use by {who}; it was not removed")
                file.path.unlink()
            except FileNotFoundError as error:
                raise _unknown(self._target, kept_as) from error
            sync(self.path)

    def restore(self, kept_as: str, job_id: str) -> tuple[Entry, Replaced | None]:
        """Give a kept volume its old name again, and keep the volume that has it now. See KeepingTarget.

        The file gets a second link, which is swapped in like a staged file, and loses the first one at the end.
        """
        file = self._find(kept_as)
        name = file.mark.volume
        if file.mark.image_format != self._folder.format.name:
            raise VolumeExistsError(
                f"the kept volume {kept_as} is a {file.mark.image_format} file, and the target makes "
                f"{self._folder.format.name} files now; convert {file.path} with qemu-img"
            )
        old = self._folder.look(name)
        if old is not None and not old.is_plain:
            raise VolumeExistsError(f"{old.path} is not a regular file with a single link; remove or rename it")
        request = StageRequest(name, file.size_bytes, Provenance(job_id, "", None, 0.0))
        staged = self._folder.stage_of(request)
        try:
            with translated("restore", file.path):
                self._folder.stages.mkdir(mode=0o700, parents=True, exist_ok=True)
                staged.unlink(missing_ok=True)
                os.link(file.path, staged)
                if old is None:
                    rename_new(staged, self._folder.file_of(name))
                    sync(self._folder.path)
            replaced = None if old is None else self.replace(request, old, RESTORE_KEEP)
        finally:
            for path in (staged, swaps.old_of(self._folder, request)):
                self.settle(StagedFile.read(path))
        self._forget(file)
        restored = self._folder.look(name)
        if restored is None:
            raise NotFoundError(f"volume {name} was removed right after it was restored")
        return restored, replaced

    def recover(self) -> list[str]:
        """Finish interrupted restores: a file that has its old name again is no longer kept."""
        done = []
        with translated("list", self.path):
            files = list(self._files())
        for file in files:
            now = self._folder.look(file.mark.volume)
            if now is not None and os.path.samestat(now.status, file.status):
                self._forget(file)
                done.append(f"finished restoring volume {file.mark.volume}")
        return done

    def adopt(self, volume: str, provenance: Provenance) -> Entry:
        """Mark a foreign volume as ours. Raises NotFoundError or VolumeExistsError."""
        entry = self._folder.look(volume)
        if entry is None:
            raise NotFoundError(f"target {self._target} has no volume {volume}")
        if entry.provenance is not None:
            raise VolumeExistsError(f"volume {volume} belongs to this service already")
        if not entry.is_plain:
            raise VolumeExistsError(f"{entry.path.name} is not a regular file with a single link")
        with translated("adopt", entry.path), opened(entry.path, os.O_RDONLY) as fd:
            if not os.path.samestat(os.fstat(fd), entry.status):
                raise VolumeExistsError(f"volume {volume} was replaced meanwhile; it was not adopted")
            if not self._folder.format.may_be(fd):
                raise VolumeExistsError(f"{entry.path.name} is no {self._folder.format.name} image")
            self._folder.mark(fd, volume, provenance)
            os.fsync(fd)
        return replace(entry, provenance=provenance)

    def _mark_of_replaced(self, staged: StagedFile) -> KeptMark | None:
        """Return the mark of a file that its job replaced and wanted to keep."""
        if staged.kind != OLD:
            return None
        with translated("inspect", staged.path):
            try:
                mark, links = _read_kept(staged.path), staged.path.lstat().st_nlink
            except FileNotFoundError:
                return None
        replaced = mark is not None and links == 1 and (mark.job_id, mark.volume) == (staged.job, staged.volume)
        return mark if replaced else None

    def _forget(self, file: _KeptFile) -> None:
        with translated("restore", file.path):
            file.path.unlink(missing_ok=True)
            sync(self.path)

    def _find(self, kept_as: str) -> _KeptFile:
        with translated("list", self.path):
            found = next((file for file in self._files() if file.mark.kept_as == kept_as), None)
        if found is None:
            raise _unknown(self._target, kept_as)
        return found

    def _files(self) -> Iterator[_KeptFile]:
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            try:
                status, mark = path.lstat(), _read_kept(path)
                if mark is not None and mark.kept_as == path.name:
                    image_format = FORMATS.get(mark.image_format, self._folder.format)
                    provenance = read_mark(path, mark.volume, status, image_format.name)
                    yield _KeptFile(path, status, mark, provenance, image_format.size_of(path, status))
            except FileNotFoundError:  # removed meanwhile
                continue


def _read_kept(path: Path) -> KeptMark | None:
    try:
        return _DECODER.decode(os.getxattr(path, ATTRIBUTE, follow_symlinks=False))
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    except (msgspec.MsgspecError, RecursionError):
        return None  # not written by this service


def _unknown(target: str, kept_as: str) -> NotFoundError:
    return NotFoundError(f"target {target} keeps no volume {kept_as[:255]!r}")
