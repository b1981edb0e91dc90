# ruff: noqa: ASYNC240 - small files of a test, on a local disk
"""Fake block targets in a folder. A second target on the same folder simulates a restart."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import trio

from provisioner.contracts.cancel_shield import undoing
from provisioner.contracts.errors import (
    NoSpaceError,
    NotFoundError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNameError,
)
from provisioner.contracts.target import BlockTarget, StagedVolume, check_growth
from provisioner.contracts.testing.steps import Steps
from provisioner.contracts.types import GIB, Capacity, Device, Placement, Provenance, StageRequest, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

_DECODER = msgspec.json.Decoder(Provenance)
# Timeout of a rollback step in seconds of the test's clock.
UNDO_DEADLINE = 5.0
_STALE = b"\xa5" * 4096


class FakeTarget(BlockTarget):
    """A block target with volumes in files ``FOLDER/NAME`` and their metadata in ``FOLDER/.lvp``.

    ``replace`` is the placement for an existing volume, None to reject it. ``in_use`` contains the names of open
    volumes; a test that adds one at the step ``commit`` or ``remove`` simulates an open between the target's check and
    its change. With ``stale``, new volumes contain stale data and ``reads_zero`` is false, as on plain LVM. ``owner``
    is the id of the installation.
    """

    STEPS: tuple[str, ...] = (
        "find", "list", "capacity", "placement", "stage", "staged", "commit", "committed", "undo", "remove", "resize",
        "recover",
    )  # fmt: skip

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "fake",
        replace: Placement | None = Placement.SWAP,
        total_bytes: int = 100 * GIB,
        stale: bool = False,
        owner: str = "",
        hang_at: str | None = None,
        fail_at: Mapping[str, Exception] | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.replace = replace
        self.total_bytes = total_bytes
        self.stale = stale
        self.owner = owner
        self.in_use: set[str] = set()
        self.steps = Steps(self.STEPS, hang_at, fail_at)
        self.closed = False
        self._hidden = folder / ".lvp"
        self._stages = self._hidden / "stage"
        self._stages.mkdir(parents=True, exist_ok=True)

    def leftovers(self) -> list[str]:
        """Return the names of staged volumes; there are none after all jobs have ended."""
        return sorted(path.name for path in self._stages.iterdir())

    def check_name(self, volume: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", volume):
            raise VolumeNameError(
                f"{volume[:120]!r} is not a valid volume name: use 1 to 100 letters, digits and any of _.+-"
            )

    async def find(self, volume: str) -> Volume | None:
        await self.steps.at("find")
        return self._volume(volume)

    async def list(self) -> Sequence[Volume]:
        await self.steps.at("list")
        found = [self._volume(path.name) for path in sorted(self.folder.iterdir()) if path.is_file()]
        return [volume for volume in found if volume is not None and volume.provenance is not None]

    async def capacity(self) -> Capacity:
        await self.steps.at("capacity")
        used = sum(path.stat().st_size for path in [*self.folder.iterdir(), *self._stages.iterdir()] if path.is_file())
        return Capacity(self.total_bytes, max(0, self.total_bytes - used))

    async def placement(self, request: StageRequest) -> Placement:
        await self.steps.at("placement")
        self.check_name(request.name)
        old = self._volume(request.name)
        if old is not None:
            self._refuse_if_open(request.name)
            if self.replace is None:
                raise VolumeExistsError(f"volume {request.name} exists and may not be replaced")
        if self.replace is not Placement.IN_PLACE and request.size_bytes > (await self.capacity()).free_bytes:
            raise NoSpaceError(f"not enough space for {request.size_bytes} bytes on {self.name}")
        return Placement.NEW if old is None or self.replace is None else self.replace

    @asynccontextmanager
    async def stage(self, request: StageRequest, *, verified: bool) -> AsyncIterator[StagedVolume]:
        placement = await self.placement(request)
        if placement is Placement.IN_PLACE:
            if not verified:
                raise VolumeExistsError(f"volume {request.name} is only overwritten with a verified image")
            yield FakeStaged(self, request, self.folder / request.name, self.folder / request.name, False)
            return
        staged = self._staged_path(request.job_id, request.name)
        async with self._undoing(staged):
            await self.steps.at("stage")
            self._make(staged, request.size_bytes)
            await self.steps.at("staged")
            yield FakeStaged(self, request, staged, self.folder / request.name, not self.stale)

    async def remove(self, volume: str) -> None:
        self._refuse_if_open(volume)
        await self.steps.at("remove")
        found = self._volume(volume)
        if found is None or found.provenance is None:
            raise NotFoundError(f"volume {volume} does not exist on {self.name} or is not managed by this service")
        self._refuse_if_open(volume)
        self._metadata_path(volume).unlink()
        (self.folder / volume).unlink()

    async def resize(self, volume: str, size_bytes: int, *, online: bool = False) -> Volume:
        found = self._volume(volume)
        if found is None or found.provenance is None:
            raise NotFoundError(f"volume {volume} does not exist on {self.name} or is not managed by this service")
        check_growth(found, size_bytes)
        if size_bytes > found.size_bytes:
            if not online:
                self._refuse_if_open(volume)
            if size_bytes - found.size_bytes > (await self.capacity()).free_bytes:
                raise NoSpaceError(f"not enough space for {size_bytes} bytes on {self.name}")
            await self.steps.at("resize")
            with (self.folder / volume).open("r+b") as file:
                file.truncate(size_bytes)
        return replace(found, size_bytes=size_bytes)

    async def recover(self, live_jobs: frozenset[str]) -> Sequence[str]:
        return await self._recover(live_jobs, every_owner=False)

    async def take_over(self) -> Sequence[str]:
        return await self._recover(frozenset(), every_owner=True)

    async def _recover(self, live_jobs: frozenset[str], *, every_owner: bool) -> Sequence[str]:
        await self.steps.at("recover")
        actions = []
        for path in sorted(self._stages.iterdir()):
            owner, _, rest = path.name.rpartition("@")
            if owner not in {"", self.owner} and not every_owner:
                actions.append(f"left staged volume {path.name} alone: it belongs to another installation ({owner})")
            elif rest.partition("~")[0] not in live_jobs:
                path.unlink()
                actions.append(f"removed staged volume {path.name}")
        return actions

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()

    def refuse_if_open(self, final: Path) -> None:
        """Raise VolumeInUseError if ``final`` is a volume that is open."""
        if final.parent == self.folder:
            self._refuse_if_open(final.name)

    def publish(self, staged: Path, final: Path, provenance: Provenance, keep_seconds: float = 0.0) -> Volume:  # noqa: ARG002
        """Publish a staged file under its final name. ``keep_seconds``: see ``StageRequest``."""
        if staged != final:
            self.refuse_if_open(final)
        self._metadata_path(final.name).write_bytes(msgspec.json.encode(provenance))
        staged.replace(final)
        return Volume(final.name, self.name, str(final), final.stat().st_size, provenance)

    def _staged_path(self, job_id: str, name: str) -> Path:
        return self._stages / f"{self.owner}{'@' if self.owner else ''}{job_id}~{name}"

    def _make(self, staged: Path, size: int) -> None:
        with staged.open("xb") as file:
            if self.stale:
                file.write(_STALE * (size // len(_STALE) + 1))
            file.truncate(size)

    @asynccontextmanager
    async def _undoing(self, staged: Path) -> AsyncIterator[None]:
        """Remove ``staged`` on exit unless it was committed. Shielded, with a deadline."""
        try:
            yield
        finally:
            if staged.exists():
                with undoing(f"remove the staged volume {staged.name}", UNDO_DEADLINE):
                    await self.steps.at("undo")
                    staged.unlink()

    def _metadata_path(self, volume: str) -> Path:
        return self._hidden / f"{volume}.json"

    def _volume(self, volume: str) -> Volume | None:
        path = self.folder / volume
        if not path.is_file():
            return None
        metadata = self._metadata_path(volume)
        provenance = _DECODER.decode(metadata.read_bytes()) if metadata.exists() else None
        return Volume(volume, self.name, str(path), path.stat().st_size, provenance)

    def _refuse_if_open(self, volume: str) -> None:
        if volume in self.in_use:
            raise VolumeInUseError(f"volume {volume} is in use")


class FakeStaged:
    """A staged file of a fake target."""

    def __init__(self, target: FakeTarget, request: StageRequest, staged: Path, final: Path, reads_zero: bool) -> None:
        self.device = Device(str(staged), staged.stat().st_size, reads_zero)
        self.request = request
        self._target, self._staged, self._final = target, staged, final

    async def commit(self, image_digest: str | None) -> Volume:
        if self._staged != self._final:
            self._target.refuse_if_open(self._final)
        await self._target.steps.at("commit")
        provenance = replace(self.request.provenance, image_digest=image_digest)
        volume = self._target.publish(self._staged, self._final, provenance, self.request.keep_seconds)
        await self._target.steps.at("committed")
        return volume
