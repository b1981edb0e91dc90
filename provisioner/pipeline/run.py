"""Runs one job: carries out what ``plan`` decides, in an order that keeps the invariants.

Each step that needs undoing is a context whose exit undoes it (shielded, under a deadline), so an error
or a cancel at any await rolls back exactly what was done.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog
import trio

from provisioner.cache import Expectation
from provisioner.contracts import CloneTarget, ImageUrl, Placement, ProvisionedBy, RemoteImage
from provisioner.contracts.errors import (
    ChecksumMismatchError,
    DamagedImageError,
    EncodedDownloadError,
    InvalidRequestError,
    MixedDownloadError,
    NoSpaceError,
    ProvisionerError,
    RemoteChangedError,
    SourceError,
)
from provisioner.contracts.redaction import redact
from provisioner.download.checksums import Found, discover
from provisioner.download.decoded import DecodedSource
from provisioner.download.fetch import with_retries
from provisioner.pipeline.copy import Copying, commit, verified
from provisioner.pipeline.job_run import Outcome
from provisioner.pipeline.plan import (
    check_checksum,
    check_fits,
    check_users,
    covers,
    decompressed_limit,
    smallest_size,
    unverified_warning,
)
from provisioner.pipeline.progress import Stage
from provisioner.pipeline.replaced import would_replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.cache import CachedImage, ImageCache
    from provisioner.contracts import Base, BlockTarget, ImageSource
    from provisioner.download.inspection import ImageInfo
    from provisioner.pipeline.job_run import JobRun, JobSpec
    from provisioner.registry import BackEnds

log = structlog.get_logger(__name__)

# How often a job starts over with an image that was damaged in the cache or changed on the server. A publisher that
# replaces an image and its checksum does so once.
RESTARTS = 2


@dataclass(slots=True)
class Pipeline:
    """Runs jobs on the back ends and the cache. ``require_checksum``: refuse images without a checksum."""

    back_ends: BackEnds
    cache: ImageCache
    require_checksum: bool
    # One job makes a base while others wait for it; a lock is freed with its last user.
    _base_locks: WeakValueDictionary[tuple[str, str], trio.Lock] = field(default_factory=WeakValueDictionary)

    async def run(self, run: JobRun) -> None:
        """Do the whole job and set the run's outcome at the moment it is irrevocable.

        Raises ProvisionerError. If it raises while there is no outcome, everything the job made is rolled back.
        """
        spec = run.spec
        run.progress.begin(Stage.CHECKING_CACHE)
        await self._check_target(run)
        source = self.back_ends.source_for(spec.image_url)
        if run.checksum is not None and await self._clone_known(run):
            return
        for restarts_left in reversed(range(RESTARTS + 1)):
            try:
                expectation = await self._expectation(run, source)
                if spec.checksum is None and await self._clone_known(run):
                    return
                await self._with_image(run, source, expectation)
                return
            # A damaged image was found in the cache, which has dropped it; or what was received is thrown away.
            except (DamagedImageError, RemoteChangedError, ChecksumMismatchError) as error:
                if isinstance(source, DecodedSource) and isinstance(error, ChecksumMismatchError):
                    raise source.mismatch from error
                if run.outcome is not None or not restarts_left or not await self._may_help(run, source, error):
                    raise
                log.warning("starting over", job_id=run.job_id, reason=error.message)
                if isinstance(error, EncodedDownloadError):
                    source = DecodedSource(source, run.spec.image_url, error)
                run.progress.restart()

    async def _may_help(self, run: JobRun, source: ImageSource, error: ProvisionerError) -> bool:
        """Return whether a fresh download may succeed after ``error``.

        After a mismatch it may if the publisher has replaced the image and its checksum in the meantime, or if the
        server has compressed the transfer on its own.
        """
        if not isinstance(error, ChecksumMismatchError) or isinstance(error, MixedDownloadError | EncodedDownloadError):
            return True
        if run.spec.checksum is not None:
            return False
        try:
            remote = await _stat(run, source)
            return (await discover(source, run.spec.image_url, remote)).checksum not in {None, run.checksum}
        except SourceError:
            return False

    async def _expectation(self, run: JobRun, source: ImageSource) -> Expectation:
        """Return what to expect of the image. If the request's own checksum is in the cache, no server is asked."""
        spec, may_use = run.spec, self.may_use(run.spec)
        url, attempts, waits = spec.image_url, self.cache.attempts, partial(_wait, run)
        if spec.checksum is not None:
            entry = self.cache.find(spec.checksum, url.text, None, may_use)
            if entry is not None:
                remote = RemoteImage(url, entry.size, None, accepts_ranges=True)
                return Expectation(remote=remote, checksum=spec.checksum, may_use=may_use)
        remote = await with_retries(lambda: _stat(run, source), attempts, waits)
        await run.pin(remote.pinned)
        found = Found(spec.checksum, "the request")
        if spec.checksum is None:
            found = await with_retries(lambda: discover(source, url, remote), attempts, waits)
        check_checksum(found, url, required=self.require_checksum)
        run.checksum = found.checksum
        run.warning = unverified_warning(found, url)
        if run.warning is not None:
            log.warning("the image is not verified", url=str(url), checksum_files=found.useless_files())
        return Expectation(remote=remote, checksum=found.checksum, may_use=may_use, origin=found.origin)

    async def _with_image(self, run: JobRun, source: ImageSource, expectation: Expectation) -> None:
        async with self.cache.image(source, expectation) as image:
            run.progress.end(Stage.CHECKING_CACHE)
            run.progress.cache_hit = image.hit
            run.progress.waiting_for = lambda: _redacted(image.waiting_for)
            if not image.hit:
                run.progress.begin(Stage.DOWNLOADING, expectation.remote.size or 0, lambda: image.available)
            await self._use(run, image)

    async def _use(self, run: JobRun, image: CachedImage) -> None:
        if run.spec.volume_name is None:
            entry = await verified(image, run.progress)
            run.outcome = Outcome(image.hit, self.cache.path(entry), bytes_total=entry.size)
            return
        info = await image.info()
        if info.compression is None:
            await self._copy(run, image)
            return
        limit = decompressed_limit(run.spec.image_format, await self._largest_size(run, info))
        async with self.cache.decompressed(image, info, limit) as decompressed:
            run.progress.begin(Stage.CONVERTING, image.size or 0, lambda: decompressed.reader.position)
            await self._copy(run, decompressed)

    async def _largest_size(self, run: JobRun, info: ImageInfo) -> int:
        """Return the volume's size in bytes; if the image decides it, at most the target's."""
        if run.size_bytes:
            return run.size_bytes
        largest = (await self.back_ends.target(run.spec.target).capacity()).total_bytes
        return largest if info.virtual_size is None else min(largest, smallest_size(info.virtual_size))

    async def _copy(self, run: JobRun, image: CachedImage) -> None:
        target = self.back_ends.target(run.spec.target)
        converter = self.back_ends.converter(run.spec.image_format)
        copying = Copying(run, image, converter, self.cache.path, self.check_guards)
        if not run.size_bytes:
            run.size_bytes = smallest_size(await copying.check_image())
            await target.placement(run.stage_request())
        if isinstance(target, CloneTarget):
            await self._through_base(target, copying)
        else:
            await copying.to_volume(target)

    async def _through_base(self, target: CloneTarget, copying: Copying) -> None:
        run, image = copying.run, copying.image
        digest = str(run.checksum) if run.checksum and run.checksum.algorithm == "sha256" else None
        digest = digest or (await verified(image, run.progress)).digest
        try:
            async with self._base_locks.setdefault((target.name, digest), trio.Lock()):
                base = await target.base(digest, run.spec.image_format)
                if base is None:
                    base = await copying.to_base(target, digest)
            entry = await verified(image, run.progress)
            await self._clone(run, target, base, image.hit, self.cache.path(entry))
        except NoSpaceError:
            if run.outcome is not None or not await _only_in_place(target, run):
                raise
            await copying.to_volume(target)

    async def _clone_known(self, run: JobRun) -> bool:
        """Clone at once if the target already has the image, without the cache."""
        spec, checksum = run.spec, run.checksum
        if spec.volume_name is None or checksum is None or checksum.algorithm != "sha256":
            return False
        may_use = self.may_use(spec)
        entry = self.cache.find(checksum, spec.image_url.text, None, may_use)
        if may_use is not None and entry is None:  # first show that the caller's own source has the image
            return False
        target = self.back_ends.target(spec.target)
        base = await target.base(str(checksum), spec.image_format) if isinstance(target, CloneTarget) else None
        if base is None:
            return False
        assert isinstance(target, CloneTarget)
        run.progress.end(Stage.CHECKING_CACHE)
        run.progress.cache_hit = True
        path = self.cache.path(entry) if entry else base.name
        try:
            await self._clone(run, target, base, True, path)
        except NoSpaceError:
            if run.outcome is not None or not await _only_in_place(target, run):
                raise
            return False  # overwriting the volume needs the image itself
        return True

    async def _clone(self, run: JobRun, target: CloneTarget, base: Base, hit: bool, image_path: str) -> None:
        run.size_bytes = run.size_bytes or smallest_size(base.size_bytes)
        check_fits(base.size_bytes, run.size_bytes)
        run.progress.begin(Stage.ALLOCATING)
        async with target.stage_clone(base, run.stage_request(base.digest)) as staged:
            run.progress.end(Stage.ALLOCATING)
            volume = await commit(staged, base.digest, run, target, self.check_guards)
            run.outcome = Outcome(hit, image_path, volume, ProvisionedBy.CLONE, base.size_bytes)

    def may_use(self, spec: JobSpec) -> Callable[[str], bool] | None:
        """Return a check whether the job may use an image from some url, or None if its caller is not limited.

        A checksum alone must not give a limited caller an image of a source that it may not use.
        """
        allowed = spec.allowed_sources
        if allowed is None:
            return None

        def may_use(url: str) -> bool:
            try:
                image_url = ImageUrl.parse(url)
                source = self.back_ends.source_for(image_url)
            except (InvalidRequestError, SourceError):  # its source is no longer configured
                return False
            name = next(name for name, one in self.back_ends.sources.items() if one is source)
            return covers(allowed, image_url, name)

        return may_use

    async def _check_target(self, run: JobRun) -> None:
        """Reject a volume that cannot be placed before anything is downloaded."""
        spec = run.spec
        if spec.volume_name is None:
            return
        target = self.back_ends.target(spec.target)
        target.check_name(spec.volume_name)
        self.back_ends.converter(spec.image_format)
        await self.check_guards(target, spec.volume_name)
        run.replaces = await would_replace(target, spec.volume_name)
        if run.size_bytes:
            await target.placement(run.stage_request())

    async def check_guards(self, target: BlockTarget, volume_name: str) -> None:
        """Ask every guard whether the volume is in use. Raises VolumeInUseError."""
        if not self.back_ends.guards:
            return
        volume = await target.find(volume_name)
        if volume is not None:
            for guard in self.back_ends.guards.values():
                check_users(volume_name, await guard.users(volume))


async def _stat(run: JobRun, source: ImageSource) -> RemoteImage:
    """Ask the source about the job's image: about the one that its url stood for when the job first asked."""
    url = run.spec.image_url
    if run.pinned_url is None:
        return await source.stat(url)
    return replace(await source.stat(run.pinned_url), url=url, pinned=run.pinned_url)


def _wait(run: JobRun, error: str | None) -> None:
    """Show readers of the job for which error it waits."""
    run.progress.waiting_for = lambda: _redacted(error)


def _redacted(error: str | None) -> str | None:
    """Return an error without the query of any url in it, which may be a signature."""
    return None if error is None else redact(error)


async def _only_in_place(target: CloneTarget, run: JobRun) -> bool:
    """Return whether the target can place the volume only by overwriting the existing one."""
    return await target.placement(run.stage_request()) is Placement.IN_PLACE
