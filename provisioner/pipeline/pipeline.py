"""Runs one job: carries out what ``plan`` decides, in an order that keeps the invariants.

Each step that needs undoing is a context whose exit undoes it (shielded, under a deadline), so an error
or a cancel at any await rolls back exactly what was done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import msgspec
import structlog
import trio

from provisioner.contracts import CloneTarget, ImageUrl, Placement, ProvisionedBy
from provisioner.contracts.errors import (
    BaseGoneError,
    ChecksumMismatchError,
    DamagedImageError,
    EncodedDownloadError,
    InvalidRequestError,
    MixedDownloadError,
    NoSpaceError,
    ProvisionerError,
    RemoteChangedError,
    SourceError,
    TargetError,
)
from provisioner.download.checksum_memory import ChecksumMemory
from provisioner.download.decoded import DecodedSource, decoded
from provisioner.pipeline import seed
from provisioner.pipeline.copy import ImageCopy, commit, verified
from provisioner.pipeline.expectation import expectation_of, is_proven, redacted, signed_checksum
from provisioner.pipeline.job_run import Outcome
from provisioner.pipeline.plan import check_fits, check_users, covers, decompressed_limit, smallest_size
from provisioner.pipeline.progress import Stage
from provisioner.pipeline.replaced import would_replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.back_ends import BackEnds
    from provisioner.cache import CachedImage, Expectation, ImageCache
    from provisioner.config import SignatureSettings
    from provisioner.contracts import Base, BlockTarget, ImageSource
    from provisioner.download.inspection import ImageInfo
    from provisioner.pipeline.job_run import JobRun, JobSpec

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
    checksums: ChecksumMemory = field(default_factory=ChecksumMemory)
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
        demanded = self.signature_for(spec, source) is not None
        if run.checksum is not None and not demanded and await self._clone_known(run):
            return
        decoding: DecodedSource | None = None
        for restarts_left in reversed(range(RESTARTS + 1)):
            try:
                # Always of the source itself, which may demand a signature.
                expectation = await expectation_of(self, run, source)
                known = is_proven(run, expectation) if demanded else spec.checksum is None
                if known and await self._clone_known(run):
                    return
                if restarts_left < RESTARTS:
                    expectation = msgspec.structs.replace(expectation, one_connection=True)
                if decoding is not None:
                    remote = decoded(expectation.remote)
                    expectation = msgspec.structs.replace(expectation, remote=remote)
                await self._with_image(run, decoding or source, expectation)
                return
            # A damaged image was found in the cache, which has dropped it; or what was received is thrown away.
            except (DamagedImageError, RemoteChangedError, ChecksumMismatchError) as error:
                self.checksums.forget(spec.image_url)
                if decoding is not None and isinstance(error, ChecksumMismatchError):
                    raise decoding.mismatch from error
                if run.outcome is not None or not restarts_left or not await self._retry_may_help(run, source, error):
                    raise
                log.warning("starting over", job_id=run.job_id, reason=error.message)
                if isinstance(error, EncodedDownloadError):
                    decoding = DecodedSource(source, run.spec.image_url, error)
                run.progress.restart()

    async def _retry_may_help(self, run: JobRun, source: ImageSource, error: ProvisionerError) -> bool:
        """Return whether a fresh download may succeed after ``error``.

        After a mismatch it may if the publisher has replaced the image and its checksum in the meantime, or if the
        server has compressed the transfer on its own.
        """
        if not isinstance(error, ChecksumMismatchError) or isinstance(error, MixedDownloadError | EncodedDownloadError):
            return True
        if run.spec.checksum is not None:
            return False
        return await signed_checksum(self, run, source) not in {None, run.checksum}

    async def _with_image(self, run: JobRun, source: ImageSource, expectation: Expectation) -> None:
        async with self.cache.image(source, expectation) as image:
            run.progress.end(Stage.CHECKING_CACHE)
            run.progress.cache_hit = image.hit
            run.progress.waiting_for = lambda: redacted(image.waiting_for)
            if not image.hit:
                run.progress.begin(Stage.DOWNLOADING, expectation.remote.size or 0, lambda: image.available)
            proof = expectation.proof
            if proof is not None and (image.hit or proof.signed is None):
                # Nothing is written to a volume while it is unknown what the publisher signed.
                await verified(image, run.progress)
                run.signed_by = await self.cache.prove(image, proof)
            await self._use(run, image)

    async def _use(self, run: JobRun, image: CachedImage) -> None:
        if run.spec.volume_name is None:
            entry = await verified(image, run.progress)
            run.outcome = Outcome(image.hit, self.cache.path(entry), bytes_total=entry.size, signed_by=run.signed_by)
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
        """Return the volume's size in bytes; if it is taken from the image, an upper bound."""
        if run.size_bytes:
            return run.size_bytes
        largest = (await self.back_ends.target(run.spec.target).capacity()).total_bytes
        return largest if info.virtual_size is None else min(largest, smallest_size(info.virtual_size))

    async def _copy(self, run: JobRun, image: CachedImage) -> None:
        target = self.back_ends.target(run.spec.target)
        converter = self.back_ends.converter(run.spec.image_format)
        copying = ImageCopy(run, image, converter, self.cache.path, self.check_guards)
        if not run.size_bytes:
            run.size_bytes = smallest_size(await copying.check_image())
            await target.placement(run.stage_request())
        if isinstance(target, CloneTarget) and await self._may_clone(target, copying):
            await self._through_base(target, copying)
        else:
            await copying.to_volume(target)

    async def _may_clone(self, target: CloneTarget, copying: ImageCopy) -> bool:
        """Return whether the target can clone the volume, after making a base if there is none."""
        request = copying.run.stage_request(_sha256(copying.run))
        # First without the image, whose header may not have arrived.
        reason = await target.why_copy(request) or await target.why_copy(request, await copying.base_bytes(target))
        if reason is not None:
            log.info("the volume is copied, not cloned", job_id=copying.run.job_id, reason=reason)
        return reason is None

    async def _through_base(self, target: CloneTarget, copying: ImageCopy) -> None:
        run, image = copying.run, copying.image
        digest = _sha256(run) or (await verified(image, run.progress)).digest
        try:
            async with self._base_locks.setdefault((target.name, digest), trio.Lock()):
                base = await target.base(digest, run.spec.image_format)
                if base is None:
                    base = await copying.to_base(target, digest)
            entry = await verified(image, run.progress)
            await self._clone(run, target, base, image.hit, self.cache.path(entry))
        except (NoSpaceError, BaseGoneError) as error:
            if run.outcome is not None or not await _falls_back_to_copy(target, run, digest, error):
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
        except (NoSpaceError, BaseGoneError) as error:
            if run.outcome is not None or not await _falls_back_to_copy(target, run, base.digest, error):
                raise
            return False  # a copy needs the image itself
        return True

    async def _clone(self, run: JobRun, target: CloneTarget, base: Base, hit: bool, image_path: str) -> None:
        run.size_bytes = run.size_bytes or smallest_size(base.size_bytes)
        check_fits(base.size_bytes, run.size_bytes)
        run.progress.begin(Stage.ALLOCATING)
        async with target.stage_clone(base, run.stage_request(base.digest)) as staged:
            run.progress.end(Stage.ALLOCATING)
            made = partial(
                Outcome, hit, image_path, provisioned_by=ProvisionedBy.CLONE, bytes_total=base.size_bytes,
                signed_by=run.signed_by,
            )  # fmt: skip
            await commit(staged, base.digest, run, target, self.check_guards, made)

    def signature_for(self, spec: JobSpec, source: ImageSource) -> SignatureSettings | None:
        """Return the signature that the job's image must have: what its name demands, else what its source demands."""
        return spec.signature or self.back_ends.signature_for(source)

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
        await seed.check(target, spec)
        if spec.seed_name is not None:
            await self.check_guards(target, spec.seed_name)
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


def _sha256(run: JobRun) -> str | None:
    """Return the image's digest as targets store it, if it is known already."""
    return str(run.checksum) if run.checksum and run.checksum.algorithm == "sha256" else None


async def _falls_back_to_copy(target: CloneTarget, run: JobRun, digest: str, error: TargetError) -> bool:
    """Return whether to copy after cloning failed with ``error``: if the base is gone, or there is room for a copy."""
    placement = await target.placement(run.stage_request())
    copies = isinstance(error, BaseGoneError) or placement is Placement.IN_PLACE
    copies = copies or await target.why_copy(run.stage_request(digest)) is not None
    if copies:
        log.info("the volume is copied, not cloned", job_id=run.job_id, reason=error.message)
    return copies
