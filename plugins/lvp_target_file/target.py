"""The file target: stages, commits and removes volumes of one folder. The disk work is in ``folder``."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from lvp_target_file import swaps
from lvp_target_file.folder import LOCK, Entry, Folder
from lvp_target_file.names import StagedFile
from lvp_target_file.placement import check_name, place
from lvp_target_file.resize import grow
from provisioner.contracts import (
    BlockTarget,
    Device,
    Finding,
    Placement,
    StagedVolume,
    StageRequest,
    Volume,
    check_growth,
    undoing,
)
from provisioner.contracts.errors import NotFoundError, VolumeExistsError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lvp_target_file.settings import FileSettings
    from provisioner.contracts import BackEndContext, Capacity

_in_thread = trio.to_thread.run_sync


class FileTarget(BlockTarget):
    """Volumes as raw files in one folder."""

    def __init__(self, settings: FileSettings, context: BackEndContext) -> None:
        self.name = context.name
        self._settings = settings
        folder = Path(settings.directory)
        lock = context.place_lock(folder / LOCK, f"the folder {folder}", shared=settings.shared)
        self._folder = Folder(settings.directory, lock)

    def check_name(self, volume: str) -> None:
        check_name(volume)

    async def find(self, volume: str) -> Volume | None:
        self.check_name(volume)
        entry = await _in_thread(self._folder.look, volume)
        return None if entry is None or not entry.is_file else self.volume_of(entry)

    async def list(self) -> Sequence[Volume]:
        return [self.volume_of(entry) for entry in await _in_thread(self._folder.own, abandon_on_cancel=True)]

    async def capacity(self) -> Capacity:
        return await _in_thread(self._folder.capacity, abandon_on_cancel=True)

    async def check(self) -> None:
        await _in_thread(self._folder.check, abandon_on_cancel=True)

    async def placement(self, request: StageRequest) -> Placement:
        return (await _in_thread(self._place, request))[0]

    @asynccontextmanager
    async def stage(self, request: StageRequest, *, verified: bool) -> AsyncIterator[StagedVolume]:
        placement, old = await _in_thread(self._place, request)
        if placement is Placement.IN_PLACE and not verified:
            raise VolumeExistsError(
                f"there is no room to stage a second volume {request.name}, and only an image verified beforehand may "
                "overwrite it in place"
            )
        try:
            await _in_thread(self._make, request, placement, old)
            yield _Staged(self, self._folder, request, old if placement is Placement.SWAP else None)
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

    async def recover(self, live_jobs: frozenset[str]) -> Sequence[str]:
        return await _in_thread(self._recover, live_jobs, False)

    async def take_over(self) -> Sequence[str]:
        return await _in_thread(self._recover, frozenset[str](), True)

    async def diagnose(self) -> Sequence[Finding]:
        if self._settings.make_directory and not await _in_thread(self._folder.path.exists):
            return [Finding(None, f"{self._folder.path} does not exist; the daemon creates it at its start")]
        return await _in_thread(partial(self._folder.diagnose, shared=self._settings.shared))

    async def aclose(self) -> None:
        self._folder.lock.release()

    def volume_of(self, entry: Entry) -> Volume:
        """Return ``entry`` as a volume."""
        return Volume(entry.name, self.name, str(entry.path), entry.status.st_size, entry.provenance)

    # The methods below block and run in threads.

    def _place(self, request: StageRequest) -> tuple[Placement, Entry | None]:
        self.check_name(request.name)
        old = self._folder.look(request.name)
        placement = place(request, old, self._folder.capacity().free_bytes, self._settings)
        if old is not None:
            swaps.refuse_if_used(old.name, self._folder.users(old.path))
        return placement, old

    def _make(self, request: StageRequest, placement: Placement, old: Entry | None) -> None:
        self._folder.claim()
        if placement is Placement.IN_PLACE and old is not None:
            swaps.take_over(self._folder, request, old)
        else:
            check = trio.from_thread.check_cancelled
            self._folder.make(request, allocate=self._settings.preallocate, check=check)

    def _clean(self, request: StageRequest) -> None:
        for path in (self._folder.stage_of(request), swaps.old_of(self._folder, request)):
            swaps.discard(self._folder, StagedFile.read(path))

    def _remove(self, volume: str) -> None:
        entry = self._own(volume)
        self._folder.claim()
        swaps.remove(self._folder, entry)

    def _resize(self, volume: str, size_bytes: int) -> Volume:
        entry = self._own(volume)
        found = self.volume_of(entry)
        check_growth(found, size_bytes)
        if size_bytes > found.size_bytes:
            self._folder.claim()
            grow(self._folder, entry, size_bytes, self._settings, trio.from_thread.check_cancelled)
        return replace(found, size_bytes=size_bytes)

    def _own(self, volume: str) -> Entry:
        """Return the entry of a volume that this service created. Raises NotFoundError."""
        entry = self._folder.look(volume)
        if entry is None or entry.provenance is None:
            raise NotFoundError(f"target {self.name} has no volume {volume} that this service created")
        return entry

    def _recover(self, live_jobs: frozenset[str], every_owner: bool) -> Sequence[str]:
        if self._settings.make_directory:
            self._folder.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._folder.claim()
        dead = [file for file in self._folder.staged() if file.job not in live_jobs]
        actions = [self._recovered(file, every_owner=every_owner) for file in dead]
        return [action for action in actions if action is not None]

    def _recovered(self, file: StagedFile, *, every_owner: bool) -> str | None:
        """Clean up a file that no live job owns. Return what was done, or None if the file is already gone."""
        if file.owner not in {"", self._folder.owner} and not every_owner:
            return f"left {file.what} alone: it belongs to another installation ({file.owner})"
        try:
            return f"removed {file.what}" if swaps.discard(self._folder, file) else None
        except VolumeInUseError as error:
            return f"left {file.path.name} alone: {error.message}"


class _Staged:
    """A staged file. ``over`` is the volume that it will replace; None if the name must be free."""

    def __init__(self, target: FileTarget, folder: Folder, request: StageRequest, over: Entry | None) -> None:
        self.device = Device(str(folder.stage_of(request)), request.size_bytes, reads_zero=True)
        self._target, self._folder, self._request, self._over = target, folder, request, over

    async def commit(self, image_digest: str | None) -> Volume:
        return await _in_thread(self._commit, image_digest)

    def _commit(self, image_digest: str | None) -> Volume:
        request, over = self._request, self._over
        provenance = replace(request.provenance, image_digest=image_digest)
        if over is not None and not over.is_still(self._folder.look(request.name)):
            raise VolumeExistsError(f"volume {request.name} was removed or replaced while the job was running")
        self._folder.finish(request, provenance, over)
        if over is None:
            self._folder.publish(request)
        else:
            swaps.swap(self._folder, request, over)
        path = self._folder.file_of(request.name)
        return self._target.volume_of(Entry(request.name, path, path.lstat(), provenance))
