"""The file target on a file system with reflinks: volumes are clones of bases, and share their blocks."""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from lvp_target_file import reflink
from lvp_target_file.bases import base_name
from lvp_target_file.disk import translated
from lvp_target_file.names import BASE
from lvp_target_file.placement import needed_bytes
from lvp_target_file.target import FileTarget, Staged
from provisioner.contracts import GIB, CloneTarget, Device, Finding, Placement, Volume, undoing
from provisioner.contracts.errors import (
    BaseGoneError,
    ChecksumMismatchError,
    InvalidRequestError,
    NoSpaceError,
    TargetUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lvp_target_file.folder import Entry
    from lvp_target_file.settings import FileSettings
    from provisioner.contracts import BackEndContext, Base, StagedVolume, StageRequest

_in_thread = trio.to_thread.run_sync


class FileCloneTarget(FileTarget, CloneTarget):
    """Volumes as raw files, cloned from bases in the same folder if its file system supports that."""

    def __init__(self, settings: FileSettings, context: BackEndContext) -> None:
        super().__init__(settings, context)
        # The device number of the file system that was tried last, and whether it can share blocks.
        self._tried: tuple[int, bool] | None = None

    async def why_copy(self, request: StageRequest, base_bytes: int = 0) -> str | None:
        return await _in_thread(self._why_copy, request, base_bytes)

    async def shares_blocks(self, fd: int) -> bool:
        return await _in_thread(self._shares_blocks, fd)

    async def base(self, image_digest: str, image_format: str) -> Base | None:
        return await _in_thread(self._bases.find, image_digest, image_format)

    @asynccontextmanager
    async def stage_base(self, request: StageRequest) -> AsyncIterator[StagedVolume]:
        digest = request.provenance.image_digest
        if digest is None:
            raise InvalidRequestError("a base needs the digest of its image")
        named = replace(request, name=base_name(digest, request.name))
        try:
            await _in_thread(self._make_base, named)
            yield _StagedBase(self, named)
        finally:
            with undoing(f"remove the staged base of image {digest}"):
                await _in_thread(self._clean, named, BASE)

    @asynccontextmanager
    async def stage_clone(self, base: Base, request: StageRequest) -> AsyncIterator[StagedVolume]:
        self.check_name(request.name)
        size = self._folder.format.rounded(max(request.size_bytes, base.size_bytes))
        request = replace(_of_clone(request, base.digest), size_bytes=size)
        try:
            old = await _in_thread(self._clone, base, request)
            device = Device(str(self._folder.stage_of(request)), size, reads_zero=False, zero_tail=False)
            yield Staged(self, request, old, device, is_clone=True)
        finally:
            with undoing(f"remove the staged volume of {request.name}"):
                await _in_thread(self._clean, request)

    async def diagnose(self) -> Sequence[Finding]:
        found = await super().diagnose()
        return [*found, *await _in_thread(self._findings)] if await _in_thread(self._folder.path.is_dir) else found

    # The methods below block and run in threads.

    def publish_base(self, request: StageRequest) -> Volume:
        """Publish the staged base of ``request`` and return it."""
        base = self._bases.publish(self._folder.stage_of(request, BASE), request.name, request.provenance)
        return Volume(base.name, self.name, str(self._bases.path / base.name), base.size_bytes, request.provenance)

    def base_device(self, request: StageRequest) -> Device:
        """Return the staged file of a base."""
        return Device(str(self._folder.stage_of(request, BASE)), request.size_bytes, reads_zero=True)

    def _reflinks(self) -> bool:
        """Return whether files of the folder can share blocks. Raises TargetUnavailableError."""
        self._folder.check_there()
        with translated("write to", self._folder.path):
            device = self._folder.path.stat().st_dev
            if self._tried is None or self._tried[0] != device:
                self._tried = (device, reflink.are_supported(self._folder.path))
            return self._tried[1]

    def _shares_blocks(self, fd: int) -> bool:
        return self._reflinks() and os.fstat(fd).st_dev == self._folder.path.stat().st_dev

    def _why_no_clones(self) -> str | None:
        if self._reflinks():
            return None
        return f"the file system of {self._folder.path} does not support reflinks, as XFS and btrfs do"

    def _why_copy(self, request: StageRequest, base_bytes: int) -> str | None:
        if (reason := self._why_no_clones()) is not None:
            return reason
        digest = request.provenance.image_digest
        needed = needed_bytes(_of_clone(request, digest), self._settings) + base_bytes
        if needed <= self._room.available(needed, digest):
            return None
        return f"{self._folder.path} has less than the {needed / GIB:.2f} GiB that a clone and its base may need"

    def _make_base(self, request: StageRequest) -> None:
        self._folder.claim()
        self._room.keep_bases(self._settings.max_bases - 1)
        self._room.make(request.data_bytes or 0)
        staged = self._folder.stage_of(request, BASE)
        with translated("create", staged), self._folder.created(request, BASE) as fd:
            os.ftruncate(fd, request.size_bytes)

    def _clone(self, base: Base, request: StageRequest) -> Entry | None:
        """Stage a clone and return the volume that has its name now."""
        with self._bases.opened(base) as source:
            placement, old = self._place(request, base.digest)
            if placement is Placement.IN_PLACE:
                raise NoSpaceError(f"there is no room for a clone beside the volume {request.name}")
            self._folder.claim()
            self._room.make(needed_bytes(request, self._settings), base.digest)
            staged = self._folder.stage_of(request)
            with translated("create", staged), self._folder.created(request) as fd:
                try:
                    reflink.clone(source, fd)
                except OSError as error:
                    if error.errno not in {errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP}:
                        raise
                    raise BaseGoneError(f"the base {base.name} cannot be cloned: {error.strerror}") from error
                if os.fstat(fd).st_size != base.size_bytes:
                    raise BaseGoneError(f"the base {base.name} was changed while the job was running")
                os.ftruncate(fd, request.size_bytes)
        return old

    def _findings(self) -> list[Finding]:
        try:
            if not self._reflinks():
                return [Finding(True, f"the filesystem of {self._folder.path} has no reflinks: volumes are copied")]
        except TargetUnavailableError as error:
            return [Finding(None, f"reflinks could not be tried: {error.message}")]
        return [
            Finding(
                True,
                f"the filesystem of {self._folder.path} has reflinks: volumes are cloned; "
                f"{self._bases.count()} bases of at most {self._settings.max_bases}",
            )
        ]


class _StagedBase:
    """A base under construction."""

    def __init__(self, target: FileCloneTarget, request: StageRequest) -> None:
        self.device = target.base_device(request)
        self._target, self._request = target, request

    async def commit(self, image_digest: str | None) -> Volume:
        expected = self._request.provenance.image_digest
        if image_digest != expected:
            raise ChecksumMismatchError(f"the image of the base has the digest {image_digest} instead of {expected}")
        return await _in_thread(self._target.publish_base, self._request)


def _of_clone(request: StageRequest, digest: str | None) -> StageRequest:
    """Return the request for a clone: of the image's data, nothing is written."""
    return replace(request, data_bytes=0, provenance=replace(request.provenance, image_digest=digest))
