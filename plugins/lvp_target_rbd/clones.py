"""The target ``rbd`` with clones: one base of each image in the pool, from which every host clones in constant time.

A base is imported once for all hosts: the host with its lease copies the image, and the others wait. If two hosts copy
it anyway, the base belongs to the one that gives it its name first.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from lvp_target_rbd import names
from lvp_target_rbd.bases import bases_in, eviction_order, is_base
from lvp_target_rbd.lease import leased
from lvp_target_rbd.placement import rounded
from lvp_target_rbd.staging import Staged, Staging
from lvp_target_rbd.target import RbdTarget
from provisioner.contracts import Base, CloneTarget, Device
from provisioner.contracts.errors import (
    BaseExistsError,
    BaseGoneError,
    ChecksumMismatchError,
    InvalidRequestError,
    NotFoundError,
    TargetError,
    VolumeExistsError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from lvp_target_rbd.records import Image
    from lvp_target_rbd.settings import RbdSettings
    from provisioner.contracts import BackEndContext, Provenance, StagedVolume, StageRequest, Volume

# Seconds for which a base is not removed after a lookup found it, so that the job can clone it.
_BASE_GRACE = 60.0


class RbdCloneTarget(RbdTarget, CloneTarget):
    """Images cloned from read-only bases."""

    def __init__(self, settings: RbdSettings, context: BackEndContext) -> None:
        super().__init__(settings, context)
        self._last_used: dict[str, float] = {}
        self._under_job: Counter[str] = Counter()

    async def base(self, image_digest: str, image_format: str) -> Base | None:
        name = names.base_name(image_digest, image_format)
        found = (await self._client.look(name)).get(name)
        if found is None or not is_base(found):
            return None
        if (found.tags.get("digest"), found.tags.get("format")) != (image_digest, image_format):
            raise TargetError(f"the base {self._settings.place}/{name} is of another image; remove it by hand")
        self._last_used[name] = time.time()
        return Base(name, image_digest, found.size)

    @asynccontextmanager
    async def stage_base(self, request: StageRequest) -> AsyncIterator[StagedVolume]:
        digest = request.provenance.image_digest
        if digest is None:
            raise InvalidRequestError("a base needs the digest of its image")
        name = names.base_name(digest, request.name)
        async with leased(self._client, self._settings, names.lease_name(name)):
            await self._refuse_existing(name)
            await self._limit_bases()
            await self._make_room(request, await self._space())
            staging = Staging(replace(request, name=name), await self._claim(), None, 0.0, request.name)
            size = rounded(request.size_bytes)
            async with self._settled(staging), self._exported(staging, size, StagedBase) as staged:
                yield staged

    @asynccontextmanager
    async def stage_clone(self, base: Base, request: StageRequest) -> AsyncIterator[StagedVolume]:
        self.check_name(request.name)
        # A clone shares the base's data; only the guest's own writes take space.
        request = replace(request, data_bytes=None, provenance=replace(request.provenance, image_digest=base.digest))
        with self._using(base.name):
            plan, space = await self._plan(request)
            await self._make_room(request, space)
            staging = await self._new_staging(request, plan.old)
            async with self._settled(staging):
                size = await self._clone(base, staging)
                path = f"rbd:{self._settings.place}/{staging.name}"
                yield self._staged(staging, Device(path, size, reads_zero=False, zero_tail=False), None)

    async def _clone(self, base: Base, staging: Staging) -> int:
        """Make the clone; return its size."""
        try:
            made = await self._client.call(
                "clone",
                base=base.name,
                name=staging.name,
                size=rounded(staging.request.size_bytes),
                tags=staging.tags(staging.request.provenance),
                data_pool=self._settings.data_pool,
            )
        except NotFoundError as error:
            raise BaseGoneError(f"the base {base.name} was removed while the job was running") from error
        staging.id = made["id"]
        return int(made["size"])

    async def _refuse_existing(self, name: str) -> None:
        if name in await self._client.look(name):
            raise BaseExistsError(f"another host has made the base {self._settings.place}/{name} meanwhile")

    async def _limit_bases(self) -> None:
        """Remove bases without clones while there are too many to make another one."""
        images = await self._client.inventory()
        excess = len(bases_in(images)) - (self._settings.max_bases - 1)
        for image in self._evictable(images)[: max(0, excess)]:
            with suppress(TargetError):
                await self._remove_image(image, "")

    def _spare(self, images: dict[str, Image]) -> int:
        return super()._spare(images) + sum(image.used for image in self._evictable(images))

    def _dispensable(self, images: dict[str, Image]) -> Sequence[Image]:
        return [*self._evictable(images), *super()._dispensable(images)]

    def _evictable(self, images: dict[str, Image]) -> Sequence[Image]:
        recently = {name for name, at in self._last_used.items() if time.time() - at < _BASE_GRACE}
        return eviction_order(images, self._last_used, recently | set(self._under_job))

    async def _remove_image(self, image: Image, job_id: str) -> None:
        if not is_base(image):
            await super()._remove_image(image, job_id)
            return
        owner, token = await self._claim(), names.new_token()
        async with self._working_on(token):
            to = names.Working("gone", owner, token).name
            await self._client.change("retire", base=image.name, base_id=image.id, to=to)
            await trio.to_thread.run_sync(self._exports.settle, token)

    @contextmanager
    def _using(self, base: str) -> Iterator[None]:
        self._under_job[base] += 1
        try:
            yield
        finally:
            self._under_job[base] -= 1
            if not self._under_job[base]:
                del self._under_job[base]
            self._last_used[base] = time.time()


class StagedBase(Staged):
    """A base under construction. Its commit takes the snapshot to clone, and gives it its name."""

    async def commit(self, image_digest: str | None) -> Volume:
        if image_digest != self._staging.request.provenance.image_digest:
            raise ChecksumMismatchError(
                f"the image of the base has the digest {image_digest} instead of "
                f"{self._staging.request.provenance.image_digest}"
            )
        return await super().commit(image_digest)

    async def _publish(self, provenance: Provenance) -> None:
        staging, name = self._staging, self._staging.request.name
        try:
            await self._client.change(
                "publish_base", name=staging.name, image_id=staging.id, base=name, tags=staging.tags(provenance)
            )
        except VolumeExistsError as error:
            if name not in await self._client.look(name):
                raise
            raise BaseExistsError(f"another host has made the base {name} meanwhile") from error


def make_rbd_target(settings: RbdSettings, context: BackEndContext) -> RbdTarget:
    """Return a target that clones, or one that only copies if ``clone`` is off."""
    return (RbdCloneTarget if settings.clone else RbdTarget)(settings, context)
