"""A fake block target that keeps replaced volumes, in ``FOLDER/.lvp/kept``."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from provisioner.contracts.errors import NotFoundError, VolumeExistsError
from provisioner.contracts.keeping import RESTORE_KEEP, KeepingSettings, removable
from provisioner.contracts.target import KeepingTarget
from provisioner.contracts.testing.fake_target import FakeTarget
from provisioner.contracts.types import Capacity, KeptVolume, Owner, Placement, Provenance, Replaced, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from provisioner.contracts.types import StageRequest

_DECODER = msgspec.json.Decoder(KeptVolume)


class FakeKeepingTarget(FakeTarget, KeepingTarget):
    """A fake target that keeps replaced volumes as ``keeping`` says. ``in_use`` may contain names of kept volumes."""

    STEPS = (*FakeTarget.STEPS, "kept", "remove_kept", "restore", "restored", "adopt")

    def __init__(self, folder: Path, *, keeping: KeepingSettings | None = None, **options: Any) -> None:
        super().__init__(folder, **options)
        self.keeping = keeping or KeepingSettings()
        self._kept = self._hidden / "kept"
        self._kept.mkdir(exist_ok=True)

    def keep_time(self, volume: Volume) -> float:
        return self.keeping.keep_seconds(volume.owner)

    async def kept(self) -> Sequence[KeptVolume]:
        await self.steps.at("kept")
        return self._all_kept()

    async def capacity(self) -> Capacity:
        freeable = sum(kept.size_bytes for kept in removable(self._all_kept(), self.keeping))
        return replace(await super().capacity(), freeable_bytes=freeable)

    async def placement(self, request: StageRequest) -> Placement:
        self.check_name(request.name)
        old = self._volume(request.name)
        if old is not None and old.owner is Owner.FOREIGN and self.keeping.foreign == "refuse":
            raise VolumeExistsError(f"volume {request.name} was not created by this service")
        return await super().placement(request)

    async def remove_kept(self, kept_as: str) -> None:
        self._refuse_if_open(kept_as)
        await self.steps.at("remove_kept")
        self._find_kept(kept_as)
        self._refuse_if_open(kept_as)
        (self._kept / kept_as).unlink()
        self._record(kept_as).unlink()

    async def restore(self, kept_as: str, job_id: str) -> Volume:
        await self.steps.at("restore")
        kept = self._find_kept(kept_as)
        self._refuse_if_open(kept.volume)
        replaced = self._keep(kept.volume, job_id, RESTORE_KEEP)
        self._metadata_path(kept.volume).unlink(missing_ok=True)
        if kept.provenance is not None:
            self._metadata_path(kept.volume).write_bytes(msgspec.json.encode(kept.provenance))
        (self._kept / kept_as).replace(self.folder / kept.volume)
        self._record(kept_as).unlink()
        restored = self._volume(kept.volume)
        assert restored is not None
        await self.steps.at("restored")
        return replace(restored, replaced=replaced)

    async def adopt(self, volume: str, provenance: Provenance) -> Volume:
        await self.steps.at("adopt")
        found = self._volume(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} does not exist on {self.name}")
        if found.provenance is not None:
            raise VolumeExistsError(f"volume {volume} belongs to this service already")
        self._metadata_path(volume).write_bytes(msgspec.json.encode(provenance))
        return replace(found, provenance=provenance)

    def publish(self, staged: Path, final: Path, provenance: Provenance, keep_seconds: float = 0.0) -> Volume:
        replaced = None
        if final.parent == self.folder and (old := self._volume(final.name)) is not None:
            in_place = staged == final
            replaced = Replaced(final.name, old.owner)
            if not in_place:
                replaced = self._keep(final.name, provenance.job_id, keep_seconds) or replaced
        return replace(super().publish(staged, final, provenance), replaced=replaced)

    def _keep(self, volume: str, job_id: str, least_seconds: float = 0.0) -> Replaced | None:
        """Keep the volume that has the name, if there is one and the settings say so. Leaves it under its name, too."""
        self._refuse_if_open(volume)
        old = self._volume(volume)
        if old is None:
            return None
        seconds = max(self.keep_time(old), least_seconds)
        if not seconds:
            return Replaced(volume, old.owner)
        now, kept_as = time.time(), f"@kept.{secrets.token_hex(8)}.{volume}"
        kept = KeptVolume(kept_as, volume, self.name, old.size_bytes, job_id, now, now + seconds, old.provenance)
        self._record(kept_as).write_bytes(msgspec.json.encode(kept))
        os.link(self.folder / volume, self._kept / kept_as)
        return Replaced(volume, old.owner, kept_as, kept.kept_until)

    def _all_kept(self) -> Sequence[KeptVolume]:
        return [_DECODER.decode(path.read_bytes()) for path in sorted(self._kept.glob("*.record"))]

    def _find_kept(self, kept_as: str) -> KeptVolume:
        found = next((kept for kept in self._all_kept() if kept.kept_as == kept_as), None)
        if found is None:
            raise NotFoundError(f"target {self.name} keeps no volume {kept_as!r}")
        return found

    def _record(self, kept_as: str) -> Path:
        return self._kept / f"{kept_as}.record"
