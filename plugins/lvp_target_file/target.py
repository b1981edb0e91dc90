"""The file target: stages, commits and removes volumes of one folder. The disk work is in ``folder``."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lvp_target_file import reflink, swaps
from lvp_target_file.backing import BackingFiles
from lvp_target_file.bases import BaseFiles
from lvp_target_file.disk import translated
from lvp_target_file.folder import LOCK, Entry, Folder
from lvp_target_file.kept import KeptFiles
from lvp_target_file.names import StagedFile
from lvp_target_file.placement import check_name, needed_bytes, place
from lvp_target_file.recovery import recover
from lvp_target_file.resize import grow
from lvp_target_file.room import Room
from provisioner.contracts import (
    Device,
    Finding,
    KeepingTarget,
    KeptVolume,
    Placement,
    Replaced,
    StagedVolume,
    StageRequest,
    Volume,
    check_growth,
    undoing,
)
from provisioner.contracts.errors import NotFoundError, VolumeExistsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lvp_target_file.settings import FileSettings
    from provisioner.contracts import BackEndContext, Capacity, Provenance

_in_thread = trio.to_thread.run_sync


class FileTarget(KeepingTarget):
    """Volumes as raw or qcow2 files in one folder."""

    def __init__(self, settings: FileSettings, context: BackEndContext) -> None:
        self.name = context.name
        self._settings = settings
        folder = Path(settings.directory)
        lock = context.place_lock(folder / LOCK, f"the folder {folder}", shared=settings.shared)
        self._folder = Folder(settings.directory, lock, settings.format)
        self._kept = KeptFiles(self._folder, self.name, settings)
        self._bases = (BackingFiles if settings.format == "qcow2" else BaseFiles)(self._folder)
        self._room = Room(self._folder, self._kept, self._bases)

    def check_name(self, volume: str) -> None:
        check_name(volume)

    async def find(self, volume: str) -> Volume | None:
        self.check_name(volume)
        entry = await _in_thread(self._folder.look, volume)
        return None if entry is None or not entry.is_file else self.volume_of(entry)

    async def list(self) -> Sequence[Volume]:
        return [self.volume_of(entry) for entry in await _in_thread(self._folder.own, abandon_on_cancel=True)]

    async def capacity(self) -> Capacity:
        return await _in_thread(self._room.capacity, abandon_on_cancel=True)

    async def check(self) -> None:
        await _in_thread(self._folder.check, abandon_on_cancel=True)

    async def placement(self, request: StageRequest) -> Placement:
        return (await _in_thread(self._place, self._rounded(request)))[0]

    @asynccontextmanager
    async def stage(self, request: StageRequest, *, verified: bool) -> AsyncIterator[StagedVolume]:
        request = self._rounded(request)
        placement, old = await _in_thread(self._place, request)
        if placement is Placement.IN_PLACE and not verified:
            raise VolumeExistsError(
                f"there is no room to stage a second volume {request.name}, and only an image verified beforehand may "
                "overwrite it in place"
            )
        try:
            await _in_thread(self._make, request, placement, old)
            device = Device(str(self._folder.stage_of(request)), request.size_bytes, reads_zero=True)
            yield Staged(self, request, old if placement is Placement.SWAP else None, device, replaces=old)
        finally:
            with undoing(f"remove the staged volume of {request.name}"):
                await _in_thread(self._clean, request)

    async def remove(self, volume: str) -> None:
        self.check_name(volume)
        await _in_thread(self._remove, volume)

    async def resize(self, volume: str, size_bytes: int, *, online: bool = False) -> Volume:  # noqa: ARG002
        """Grow a closed volume. An open one is refused: QEMU grows the file itself (``virsh blockresize``)."""
        self.check_name(volume)
        return await _in_thread(self._resize, volume, size_bytes)

    def keep_time(self, volume: Volume) -> float:
        return self._settings.keep_seconds(volume.owner)

    async def kept(self) -> Sequence[KeptVolume]:
        return await _in_thread(self._kept.volumes, abandon_on_cancel=True)

    async def remove_kept(self, kept_as: str) -> None:
        await _in_thread(self._remove_kept, kept_as)

    async def restore(self, kept_as: str, job_id: str) -> Volume:
        return await _in_thread(self._restore, kept_as, job_id)

    async def adopt(self, volume: str, provenance: Provenance) -> Volume:
        self.check_name(volume)
        return await _in_thread(self._adopt, volume, provenance)

    async def recover(self, live_jobs: frozenset[str]) -> Sequence[str]:
        return await _in_thread(self._recover, live_jobs, False)

    async def take_over(self) -> Sequence[str]:
        return await _in_thread(self._recover, frozenset[str](), True)

    async def diagnose(self) -> Sequence[Finding]:
        if self._settings.make_directory and not await _in_thread(self._folder.path.exists):
            return [Finding(None, f"{self._folder.path} does not exist; the daemon creates it at its start")]
        return await _in_thread(self._diagnose)

    async def aclose(self) -> None:
        self._folder.lock.release()

    def volume_of(self, entry: Entry) -> Volume:
        """Return ``entry`` as a volume."""
        return Volume(entry.name, self.name, str(entry.path), entry.size_bytes, entry.provenance)

    def _rounded(self, request: StageRequest) -> StageRequest:
        return replace(request, size_bytes=self._folder.format.rounded(request.size_bytes))

    # The methods below block and run in threads.

    def commit(
        self, request: StageRequest, provenance: Provenance, over: Entry | None, *, is_clone: bool = False
    ) -> Volume:
        """Publish the staged volume, in place of ``over`` if it is not None."""
        if over is not None and not over.is_still(self._folder.look(request.name)):
            raise VolumeExistsError(f"volume {request.name} was removed or replaced while the job was running")
        self._folder.finish(request, provenance, over, partial(self._complete, request.size_bytes, is_clone))
        replaced = None
        with self._folder.changing():
            if over is None:
                self._folder.publish(request)
            else:
                replaced = self._kept.replace(request, over, request.keep_seconds)
        path = self._folder.file_of(request.name)
        return Volume(request.name, self.name, str(path), request.size_bytes, provenance, replaced)

    def _complete(self, size: int, is_clone: bool, fd: int) -> None:
        if not is_clone:
            self._folder.format.complete(fd, size, whole=self._settings.preallocate)

    def _place(self, request: StageRequest, sparing: str | None = None) -> tuple[Placement, Entry | None]:
        """Return the placement and the existing entry. ``sparing``: the digest of bases that stay."""
        self.check_name(request.name)
        old = self._folder.look(request.name)
        available = self._room.available(needed_bytes(request, self._settings), sparing)
        placement = place(request, old, available, self._settings, self._shared_bytes(old))
        if old is not None:
            swaps.refuse_if_used(old.name, self._folder.users(old.path))
            if placement is Placement.IN_PLACE:
                self._kept.refuse_unless_blank(old)
        return placement, old

    def _shared_bytes(self, old: Entry | None) -> int:
        if old is None or not old.is_plain or self._settings.replace != "in-place":
            return 0
        with translated("inspect", old.path):
            return max(0, old.status.st_blocks * 512 - reflink.own_bytes(old.path))

    def _make(self, request: StageRequest, placement: Placement, old: Entry | None) -> None:
        self._folder.claim()
        if placement is Placement.IN_PLACE and old is not None:
            with self._folder.changing():
                swaps.take_over(self._folder, request, old)
        else:
            self._room.make(needed_bytes(request, self._settings))
            check = trio.from_thread.check_cancelled
            self._folder.make(request, allocate=self._settings.preallocate, check=check)

    def _clean(self, request: StageRequest, kind: str = "") -> None:
        with self._folder.changing():
            for path in (self._folder.stage_of(request, kind), swaps.old_of(self._folder, request)):
                self._kept.settle(StagedFile.read(path))

    def _remove(self, volume: str) -> None:
        entry = self._own_entry(volume)
        self._folder.claim()
        with self._folder.changing():
            swaps.remove(self._folder, entry)

    def _resize(self, volume: str, size_bytes: int) -> Volume:
        entry = self._own_entry(volume)
        found = self.volume_of(entry)
        size_bytes = self._folder.format.rounded(size_bytes)
        check_growth(found, size_bytes)
        if size_bytes > found.size_bytes:
            self._folder.claim()
            with self._folder.changing():
                grow(self._folder, entry, size_bytes, self._settings, trio.from_thread.check_cancelled)
        return replace(found, size_bytes=size_bytes)

    def _own_entry(self, volume: str) -> Entry:
        """Return the entry of a volume that this service created. Raises NotFoundError."""
        entry = self._folder.look(volume)
        if entry is None or entry.provenance is None:
            raise NotFoundError(f"target {self.name} has no volume {volume} that this service created")
        return entry

    def _remove_kept(self, kept_as: str) -> None:
        self._folder.claim()
        with self._folder.changing():
            self._kept.remove(kept_as)

    def _restore(self, kept_as: str, job_id: str) -> Volume:
        self._folder.claim()
        with self._folder.changing():
            entry, replaced = self._kept.restore(kept_as, job_id)
        return replace(self.volume_of(entry), replaced=replaced)

    def _adopt(self, volume: str, provenance: Provenance) -> Volume:
        self._folder.claim()
        with self._folder.changing():
            return self.volume_of(self._kept.adopt(volume, provenance))

    def _recover(self, live_jobs: frozenset[str], every_owner: bool) -> Sequence[str]:
        if self._settings.make_directory:
            self._folder.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._folder.claim()
        with self._folder.changing():
            return recover(self._folder, self._kept, self._bases, live_jobs, every_owner=every_owner)

    def _diagnose(self) -> Sequence[Finding]:
        found = self._folder.diagnose(shared=self._settings.shared)
        if self._settings.clone and not self._settings.preallocate:
            return found
        left = self._bases.least_used_first()
        if not left:
            return found
        setting = "preallocate = true" if self._settings.clone else "clone = false"
        what = f"{setting}, but {len(left)} bases that no volume needs still take up space"
        return [*found, Finding(False, what, f"remove {', '.join(str(file.path) for file in left)}")]


class Staged:
    """A staged file. ``over`` is the volume that its commit swaps out; None if the name must be free then.

    ``replaces`` is the volume that had the name before; by default ``over``. A clone has its format already; what a
    converter wrote gets it at the commit.
    """

    def __init__(
        self,
        target: FileTarget,
        request: StageRequest,
        over: Entry | None,
        device: Device,
        replaces: Entry | None = None,
        *,
        is_clone: bool = False,
    ) -> None:
        self.device = device
        self._is_clone = is_clone
        self._target, self._request, self._over = target, request, over
        old = replaces or over
        self._replaced = Replaced(old.name, target.volume_of(old).owner) if old is not None else None

    async def commit(self, image_digest: str | None) -> Volume:
        provenance = replace(self._request.provenance, image_digest=image_digest)
        commit = partial(self._target.commit, is_clone=self._is_clone)
        volume = await _in_thread(commit, self._request, provenance, self._over)
        return volume if volume.replaced is not None else replace(volume, replaced=self._replaced)
