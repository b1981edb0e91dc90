"""Runs one job: carries out what ``plan`` decides, in an order that keeps the invariants.

Each step that needs undoing is a context whose exit undoes it (shielded, under a deadline), so that leaving by
error or cancel, at whatever await, rolls back exactly what was done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

from provisioner.cache import Expectation
from provisioner.contracts import CloneTarget, Placement, ProvisionedBy
from provisioner.contracts.errors import DamagedImageError, InvalidRequestError, NoSpaceError, SourceError
from provisioner.download.checksums import discover
from provisioner.download.fetch import with_retries
from provisioner.pipeline.copy import Copying, commit, verified
from provisioner.pipeline.plan import (
    Outcome,
    Request,
    check_checksum,
    check_fits,
    check_users,
    covers,
    decompressed_limit,
    stage_request,
)
from provisioner.pipeline.progress import Progress, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.cache import CachedImage, ImageCache
    from provisioner.contracts import Base, BlockTarget, Checksum, ImageSource
    from provisioner.registry import BackEnds


@dataclass(slots=True)
class Pipeline:
    """The back ends and the cache that jobs use. ``require_checksum``: refuse images without a checksum."""

    back_ends: BackEnds
    cache: ImageCache
    require_checksum: bool
    # One job makes a base while others that need it wait; a lock is freed with its last user.
    _base_locks: WeakValueDictionary[tuple[str, str], trio.Lock] = field(default_factory=WeakValueDictionary)

    async def run(self, request: Request, progress: Progress, done: list[Outcome]) -> None:
        """Do the whole job and put its outcome into ``done`` at the moment it is irrevocable.

        Raises ProvisionerError. If it raises while ``done`` is empty, everything the job made is rolled back.
        """
        progress.begin(Stage.CHECKING_CACHE)
        await self._check_target(request)
        source = self.back_ends.source_for(request.image_url)
        attempts = self.cache.attempts
        remote = await with_retries(lambda: source.stat(request.image_url), attempts)
        checksum = request.checksum or await with_retries(lambda: discover(source, request.image_url), attempts)
        check_checksum(checksum, request.image_url, required=self.require_checksum)
        if await self._clone_known(request, checksum, progress, done):
            return
        expectation = Expectation(remote=remote, checksum=checksum, may_use=self._may_use(request))
        try:
            await self._with_image(request, source, expectation, progress, done)
        except DamagedImageError:  # found in the cache, which has dropped it
            if done:
                raise
            progress.restart()
            await self._with_image(request, source, expectation, progress, done)

    async def _with_image(
        self, request: Request, source: ImageSource, expectation: Expectation, progress: Progress, done: list[Outcome]
    ) -> None:
        async with self.cache.image(source, expectation) as image:
            progress.end(Stage.CHECKING_CACHE)
            progress.cache_hit = image.hit
            if not image.hit:
                progress.begin(Stage.DOWNLOADING, expectation.remote.size or 0, lambda: image.available)
            await self._use(request, image, expectation.checksum, progress, done)

    async def _use(
        self, request: Request, image: CachedImage, checksum: Checksum | None, progress: Progress, done: list[Outcome]
    ) -> None:
        if request.volume_name is None:
            entry = await verified(image, progress)
            done.append(Outcome(image.hit, self.cache.path(entry)))
            return
        info = await image.info()
        if info.compression is None:
            await self._copy(request, image, checksum, progress, done)
            return
        async with self.cache.decompressed(image, info, decompressed_limit(request)) as decompressed:
            progress.begin(Stage.CONVERTING, image.size or 0, lambda: decompressed.reader.position)
            await self._copy(request, decompressed, checksum, progress, done)

    async def _copy(
        self, request: Request, image: CachedImage, checksum: Checksum | None, progress: Progress, done: list[Outcome]
    ) -> None:
        target = self.back_ends.target(request.target)
        converter = self.back_ends.converter(request.image_type)
        copying = Copying(request, image, converter, progress, self.cache.path, self.check_guards)
        if isinstance(target, CloneTarget):
            await self._through_base(request, target, copying, checksum, done)
        else:
            await copying.to_volume(target, done)

    async def _through_base(
        self,
        request: Request,
        target: CloneTarget,
        copying: Copying,
        checksum: Checksum | None,
        done: list[Outcome],
    ) -> None:
        digest = str(checksum) if checksum and checksum.algorithm == "sha256" else None
        digest = digest or (await verified(copying.image, copying.progress)).digest
        try:
            async with self._base_locks.setdefault((target.name, digest), trio.Lock()):
                base = await target.base(digest, request.image_type)
                if base is None:
                    base = await copying.to_base(target, digest)
            entry = await verified(copying.image, copying.progress)
            await self._clone(request, target, base, copying.progress, copying.image.hit, self.cache.path(entry), done)
        except NoSpaceError:
            if done or not await _only_in_place(target, request):
                raise
            await copying.to_volume(target, done)

    async def _clone_known(
        self, request: Request, checksum: Checksum | None, progress: Progress, done: list[Outcome]
    ) -> bool:
        """Clone at once if the target already has the image, without the cache."""
        if request.volume_name is None or checksum is None or checksum.algorithm != "sha256":
            return False
        may_use = self._may_use(request)
        entry = self.cache.find(checksum, request.image_url, None, may_use)
        if may_use is not None and entry is None:  # it has to be shown that the caller's own source has the image
            return False
        target = self.back_ends.target(request.target)
        base = await target.base(str(checksum), request.image_type) if isinstance(target, CloneTarget) else None
        if base is None:
            return False
        assert isinstance(target, CloneTarget)
        progress.end(Stage.CHECKING_CACHE)
        progress.cache_hit = True
        path = self.cache.path(entry) if entry else base.name
        try:
            await self._clone(request, target, base, progress, True, path, done)
        except NoSpaceError:
            if done or not await _only_in_place(target, request):
                raise
            return False  # to overwrite the volume the image itself is needed
        return True

    async def _clone(
        self,
        request: Request,
        target: CloneTarget,
        base: Base,
        progress: Progress,
        hit: bool,
        image_path: str,
        done: list[Outcome],
    ) -> None:
        check_fits(base.size_bytes, request.volume_size)
        progress.begin(Stage.ALLOCATING)
        async with target.stage_clone(base, stage_request(request, base.digest)) as staged:
            progress.end(Stage.ALLOCATING)
            volume = await commit(staged, base.digest, request, target, self.check_guards, progress)
            done.append(Outcome(hit, image_path, volume, ProvisionedBy.CLONE))

    def _may_use(self, request: Request) -> Callable[[str], bool] | None:
        """Whether an image that came from a url may be given to the job; None if its caller is not limited.

        A checksum alone must not give a limited caller an image of a source that it may not use.
        """
        allowed = request.allowed_sources
        if allowed is None:
            return None

        def may_use(url: str) -> bool:
            try:
                source = self.back_ends.source_for(url)
            except (InvalidRequestError, SourceError):  # of a source that is no longer configured
                return False
            name = next(name for name, one in self.back_ends.sources.items() if one is source)
            return covers(allowed, url, name)

        return may_use

    async def _check_target(self, request: Request) -> None:
        """Reject a volume that cannot be placed before anything is downloaded."""
        if request.volume_name is None:
            return
        target = self.back_ends.target(request.target)
        target.check_name(request.volume_name)
        self.back_ends.converter(request.image_type)
        await self.check_guards(target, request.volume_name)
        await target.placement(stage_request(request, None))

    async def check_guards(self, target: BlockTarget, volume_name: str) -> None:
        """Ask every guard whether the volume is in use. Raises VolumeInUseError."""
        if not self.back_ends.guards:
            return
        volume = await target.find(volume_name)
        if volume is not None:
            for guard in self.back_ends.guards.values():
                check_users(volume_name, await guard.users(volume))


async def _only_in_place(target: CloneTarget, request: Request) -> bool:
    """Return whether there is no room for a clone or a base, but the volume that is there may be overwritten."""
    return await target.placement(stage_request(request, None)) is Placement.IN_PLACE
