"""Replaced volumes that are kept aside in the pool, as ``lvp.kept.TOKEN``, and foreign volumes that are adopted."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from lvp_target_rbd import names
from lvp_target_rbd.placement import why_not_removed, why_not_replaced
from lvp_target_rbd.records import tags_of
from lvp_target_rbd.staging import Staging
from provisioner.contracts import RESTORE_KEEP, KeepingTarget, KeptVolume, Provenance, StageRequest, Volume, removable
from provisioner.contracts.errors import NotFoundError, VolumeExistsError, VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from lvp_target_rbd.client import Client
    from lvp_target_rbd.records import Image
    from lvp_target_rbd.settings import RbdSettings


class KeepingPool(KeepingTarget):
    """The part of the target that deals with kept volumes."""

    _client: Client
    _settings: RbdSettings

    @abstractmethod
    async def _claim(self) -> str: ...

    @abstractmethod
    async def _once_closed(self, image: Image) -> Image: ...

    @abstractmethod
    async def _remove_image(self, image: Image, job_id: str) -> None: ...

    @abstractmethod
    def _settled(self, staging: Staging) -> AbstractAsyncContextManager[None]: ...

    @abstractmethod
    def _as_volume(self, image: Image) -> Volume: ...

    def keep_time(self, volume: Volume) -> float:
        return self._settings.keep_seconds(volume.owner)

    async def kept(self) -> Sequence[KeptVolume]:
        return list(self._kept_in(await self._client.inventory()).values())

    async def remove_kept(self, kept_as: str) -> None:
        image = await self._find_kept(kept_as)
        if (refusal := why_not_removed(self._settings, image)) is not None:
            raise VolumeInUseError(refusal)
        await self._remove_image(await self._once_closed(image), "")

    async def restore(self, kept_as: str, job_id: str) -> Volume:
        image = await self._find_kept(kept_as)
        assert image.aside is not None
        name = image.aside.name
        old = (await self._client.look(name)).get(name)
        if old is not None:
            if (refusal := why_not_replaced(self._settings, old)) is not None:
                raise VolumeExistsError(refusal)
            old = await self._once_closed(old)
        request = StageRequest(name, image.size, Provenance(job_id, "", None, 0.0))
        keep = 0.0 if old is None else max(RESTORE_KEEP, self.keep_time(self._as_volume(old)))
        staging = Staging(request, await self._claim(), old, keep)
        staging.id, staging.noted = image.id, {name: image.id, kept_as: image.id}
        change = staging.old_change(image.id)
        async with self._settled(staging):
            # The empty tags say that the image keeps its own.
            await self._client.change("publish", staged=image.name, staged_id=image.id, name=name, tags="", old=change)
            staging.clean = True
        found = (await self._client.look(name)).get(name)
        if found is None or found.id != image.id:
            raise VolumeExistsError(f"volume {self._settings.place}/{name} was replaced right after it was restored")
        return replace(self._as_volume(found), replaced=staging.replaced)

    async def adopt(self, volume: str, provenance: Provenance) -> Volume:
        names.check(volume)
        image = (await self._client.look(volume)).get(volume)
        if image is None or not image.is_volume:
            raise NotFoundError(f"target {self.name} has no volume {volume}")
        if image.provenance is not None:
            raise VolumeExistsError(f"volume {self._settings.place}/{volume} belongs to this service already")
        made = tags_of(volume, names.new_token(), await self._claim(), provenance)
        await self._client.change("tag", name=volume, image_id=image.id, tags=made)
        return replace(self._as_volume(image), provenance=provenance)

    def _kept_in(self, images: Mapping[str, Image]) -> dict[str, KeptVolume]:
        found = (image.kept(self.name) for image in images.values())
        return {kept.kept_as: kept for kept in found if kept is not None}

    def _removable(self, images: Mapping[str, Image]) -> list[Image]:
        kept = (images[one.kept_as] for one in removable(self._kept_in(images).values(), self._settings))
        return [image for image in kept if not image.watchers and not image.snapshots]

    def _freeable(self, images: Mapping[str, Image]) -> int:
        return sum(image.used for image in self._removable(images))

    async def _find_kept(self, kept_as: str) -> Image:
        found = None
        if kept_as.startswith(names.KEPT) and len(kept_as) <= names.MAX_NAME:
            found = (await self._client.look(kept_as)).get(kept_as)
        if found is None or found.kept(self.name) is None:
            raise NotFoundError(f"target {self.name} keeps no volume {kept_as[:255]!r}")
        return found
