"""A fake block target that clones."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from provisioner.contracts.errors import BaseGoneError, ChecksumMismatchError, NoSpaceError, ProvisionerError
from provisioner.contracts.target import CloneTarget, StagedVolume
from provisioner.contracts.testing.fake_target import FakeStaged, FakeTarget
from provisioner.contracts.types import MIB, Base, Placement, StageRequest, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class FakeCloneTarget(FakeTarget, CloneTarget):
    """A fake target that supports clones: bases are files in ``FOLDER/.lvp/base``.

    With ``copy_reason``, volumes must be copied.
    """

    STEPS = (*FakeTarget.STEPS, "why_copy", "base", "stage_base", "stage_clone")
    copy_reason: str | None = None

    async def why_copy(self, request: StageRequest, base_bytes: int = 0) -> str | None:  # noqa: ARG002
        await self.steps.at("why_copy")
        return self.copy_reason

    async def base(self, image_digest: str, image_format: str) -> Base | None:
        await self.steps.at("base")
        path = self._base_path(image_digest, image_format)
        return Base(path.name, image_digest, path.stat().st_size) if path.exists() else None

    @asynccontextmanager
    async def stage_base(self, request: StageRequest) -> AsyncIterator[StagedVolume]:
        digest = request.provenance.image_digest
        if digest is None:
            raise ProvisionerError("a base needs its image's digest")
        final = self._base_path(digest, request.name)
        staged = self._staged_path(request.job_id, final.name)
        async with self._undoing(staged):
            await self.steps.at("stage_base")
            self._make(staged, request.size_bytes)
            yield _FakeStagedBase(self, request, staged, final, not self.stale)

    @asynccontextmanager
    async def stage_clone(self, base: Base, request: StageRequest) -> AsyncIterator[StagedVolume]:
        if await self.placement(request) is Placement.IN_PLACE:
            raise NoSpaceError("a clone cannot replace a volume in place")
        staged = self._staged_path(request.job_id, request.name)
        async with self._undoing(staged):
            await self.steps.at("stage_clone")
            try:
                _copy_data(self._base_folder() / base.name, staged)
            except FileNotFoundError as error:
                raise BaseGoneError(f"the base {base.name} was removed while the job was running") from error
            with staged.open("r+b") as file:
                file.truncate(request.size_bytes)
            yield FakeStaged(self, request, staged, self.folder / request.name, True)

    def _base_path(self, image_digest: str, image_format: str) -> Path:
        return self._base_folder() / f"{image_digest.replace(':', '-')}.{image_format}"

    def _base_folder(self) -> Path:
        folder = self._hidden / "base"
        folder.mkdir(exist_ok=True)
        return folder


class _FakeStagedBase(FakeStaged):
    async def commit(self, image_digest: str | None) -> Volume:
        if image_digest != self.request.provenance.image_digest:
            raise ChecksumMismatchError(f"the image of the base has the digest {image_digest}")
        return await super().commit(image_digest)


def _copy_data(source: Path, copy: Path) -> None:
    """Copy a file without reading its holes: a base is mostly empty."""
    with source.open("rb") as whole, copy.open("wb") as made:
        end, position = whole.seek(0, os.SEEK_END), 0
        made.truncate(end)
        while position < end:
            try:
                position = os.lseek(whole.fileno(), position, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            stop = os.lseek(whole.fileno(), position, os.SEEK_HOLE)
            while position < stop:
                position += os.pwrite(
                    made.fileno(), os.pread(whole.fileno(), min(stop - position, MIB), position), position
                )
