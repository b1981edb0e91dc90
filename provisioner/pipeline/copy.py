"""Copies an image onto a staged volume: convert, verify, zero the tail, commit.

A streaming converter works while the image is still downloading; the digest is always checked before commit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio

from provisioner.contracts import Placement, ProvisionedBy, blockdev
from provisioner.contracts.cancel_shield import ShieldExpiredError, shielded
from provisioner.contracts.errors import BaseExistsError, ImageFormatError, TargetError
from provisioner.contracts.tasks import run_both
from provisioner.contracts.threads import run_long
from provisioner.download.inspection import ImageInfo
from provisioner.pipeline.job_run import Outcome
from provisioner.pipeline.plan import check_image, data_bytes, may_overlap, needs_end
from provisioner.pipeline.progress import Stage
from provisioner.pipeline.replaced import replaced_by
from provisioner.pipeline.seed import commit_both

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from provisioner.cache import CachedImage, Entry
    from provisioner.contracts import Base, BlockTarget, CloneTarget, Converter, Device, Replaced, StagedVolume, Volume
    from provisioner.pipeline.job_run import JobRun
    from provisioner.pipeline.progress import Progress

    CheckGuards = Callable[[BlockTarget, str], Awaitable[None]]

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Seconds for a commit, which finishes even if the job is cancelled; limits how long a hung device can take.
COMMIT_TIMEOUT = 120.0
# Seconds to look up whether a failed commit made the volume after all.
FIND_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class ImageCopy:
    """One image on its way onto one volume."""

    run: JobRun
    image: CachedImage
    converter: Converter
    path_of: Callable[[Entry], str]
    check_guards: CheckGuards

    async def to_volume(self, target: BlockTarget) -> None:
        """Copy onto a volume of the job's own, commit it, and set the run's outcome before anything else happens."""
        run, image, spec = self.run, self.image, self.run.spec
        virtual_size = await self.check_image()
        data = data_bytes(spec.image_format, image.size, virtual_size)
        placement = await target.placement(run.stage_request(data_bytes=data))
        overlap = may_overlap(self.converter, placement, hit=image.hit, size_known=image.size is not None)
        if not overlap:
            await verified(image, run.progress)
            await self._checked(placement)
            virtual_size = await self.check_image()
        run.progress.begin(Stage.ALLOCATING)
        async with target.stage(run.stage_request(data_bytes=data), verified=not overlap) as staged:
            run.progress.end(Stage.ALLOCATING)
            entry = await self._fill(staged.device, virtual_size)
            made = partial(
                Outcome, image.hit, self.path_of(entry), provisioned_by=ProvisionedBy.COPY, bytes_total=virtual_size,
                signed_by=run.signed_by,
            )  # fmt: skip
            await commit(staged, entry.digest, run, target, self.check_guards, made)

    async def to_base(self, target: CloneTarget, digest: str) -> Base:
        """Copy onto a new base of the target and publish it, or wait for the one that another host makes."""
        run, image, spec = self.run, self.image, self.run.spec
        overlap = self.converter.streams and not image.hit and image.size is not None
        if not overlap or await self._shares_blocks(target):
            await verified(image, run.progress)
            await self._checked(Placement.NEW)
        virtual_size = await self.check_image()
        run.progress.begin(Stage.ALLOCATING)
        data = data_bytes(spec.image_format, image.size, virtual_size)
        base_request = run.stage_request(digest, name=spec.image_format, size_bytes=virtual_size, data_bytes=data)
        try:
            async with target.stage_base(base_request) as staged:
                run.progress.end(Stage.ALLOCATING)
                await self._fill(staged.device, virtual_size)
                await _bounded(lambda: staged.commit(digest))
        except BaseExistsError as error:
            log.info("another host has made the base", job_id=run.job_id, reason=error.message)
        base = await target.base(digest, spec.image_format)
        if base is None:
            raise TargetError(f"the base volume of {spec.image_url} vanished right after it was made")
        return base

    async def base_bytes(self, target: CloneTarget) -> int:
        """Return about how many bytes a new base of the image takes on the target."""
        virtual_size = await self.check_image()
        if await self._shares_blocks(target):
            return 0
        return data_bytes(self.run.spec.image_format, self.image.size, virtual_size) or virtual_size

    async def _shares_blocks(self, target: CloneTarget) -> bool:
        return self.run.spec.image_format == "raw" and await target.shares_blocks(self.image.fd)

    async def _checked(self, placement: Placement) -> None:
        """Check a cached image before it is converted, unless the converter checks what it reads.

        In place it is always checked: the old content must stay until the new one is known to be right.
        """
        if placement is Placement.IN_PLACE or not self.converter.checks:
            await self.image.checked()

    async def check_image(self) -> int:
        """Return the image's virtual size in bytes after checking its header, and its end if that matters."""
        image, spec = self.image, self.run.spec
        info = await image.info()
        if not needs_end(info, spec.image_format, spec.image_url, image.size):
            size = await self._checked_size(info)
            if size is not None:
                return size
        await image.downloaded()  # or it is a raw image from a server that does not state its length
        size = await self._checked_size(info)
        if size is None:
            raise ImageFormatError("the image's size cannot be determined")
        return size

    async def _checked_size(self, info: ImageInfo) -> int | None:
        image, declared = self.image, self.run.spec.image_format
        file_size = image.size
        if info.format == "raw" and file_size is not None and image.available >= file_size:
            file_size = await image.disk_bytes()
            if declared == "vpc" and file_size != image.size:
                info = ImageInfo("vpc", file_size)
        return check_image(info, declared, file_size, self.run.size_bytes)

    async def _fill(self, device: Device, virtual_size: int) -> Entry:
        """Write the image and zeros after it to the device; return the verified entry."""
        view = self.image.view(self.run.spec.image_format, virtual_size)
        self.run.progress.begin(Stage.CONVERTING, virtual_size)

        async def convert() -> None:
            await self.converter.convert(view, device, lambda done: self.run.progress.advance(Stage.CONVERTING, done))
            self.run.progress.end(Stage.CONVERTING)
            self.run.progress.begin(Stage.POPULATING, device.size_bytes - virtual_size)
            if device.zero_tail and not device.reads_zero:
                await run_long(_zero, device.path, virtual_size)
            self.run.progress.end(Stage.POPULATING)

        await run_both(convert, lambda: verified(self.image, self.run.progress))
        await self._erase_footer(device, virtual_size)
        return await self.image.verified()

    async def _erase_footer(self, device: Device, written: int) -> None:
        """Zero the footer of a fixed VHD that was converted before its end had arrived."""
        if self.run.spec.image_format == "raw":
            disk = await self.image.disk_bytes()
            if disk < written:
                await run_long(_zero, device.path, disk, written)


async def verified(image: CachedImage, progress: Progress) -> Entry:
    """Wait for the download and the digest check, and update ``progress``. May be called again."""
    await image.downloaded()
    if not image.hit and not progress.ended(Stage.DOWNLOADING):
        progress.end(Stage.DOWNLOADING)
        progress.begin(Stage.VERIFYING)
    entry = await image.verified()
    if not image.hit and not progress.ended(Stage.VERIFYING):
        progress.end(Stage.VERIFYING)
    return entry


async def commit(
    staged: StagedVolume,
    digest: str,
    run: JobRun,
    target: BlockTarget,
    check_guards: CheckGuards,
    made: Callable[..., Outcome],
) -> None:
    """Check the guards a last time, then commit, shielded from cancellation, and set the run's outcome at once.

    ``made`` makes the outcome of the volume and its seed.
    """
    run.progress.begin(Stage.FINALIZING)

    async def commit_volume(seed: Volume | None) -> None:
        try:
            volume = await _bounded(lambda: staged.commit(digest))
        except Exception as error:  # noqa: BLE001 - raised again if the volume does not exist
            volume = await _committed_after_all(run, target, error)
        if volume.replaced is None:
            volume = replace(volume, replaced=run.replaces)
        run.outcome = made(volume=volume, seed=seed)
        run.progress.end(Stage.FINALIZING)
        if volume.replaced is not None:
            _log_replaced(volume.replaced)

    await commit_both(run, target, partial(check_guards, target), commit_volume, COMMIT_TIMEOUT)


def _log_replaced(replaced: Replaced) -> None:
    until = None if replaced.kept_until is None else datetime.fromtimestamp(replaced.kept_until, UTC).isoformat()
    log.info(
        "volume replaced", volume=replaced.volume, owner=replaced.owner, kept_as=replaced.kept_as, kept_until=until
    )


async def _bounded(work: Callable[[], Awaitable[T]]) -> T:
    try:
        with shielded("commit the volume", COMMIT_TIMEOUT):
            return await work()
    except ShieldExpiredError as error:
        raise TargetError(f"the target did not commit the volume within {COMMIT_TIMEOUT:g} s") from error


async def _committed_after_all(run: JobRun, target: BlockTarget, error: Exception) -> Volume:
    """Return the job's volume if it exists although its commit failed; it must not be reported as missing.

    Raises ``error`` if the volume does not exist or cannot be looked up.
    """
    assert run.spec.volume_name is not None
    try:
        with shielded("look for the volume after its commit failed", FIND_TIMEOUT):
            volume = await target.find(run.spec.volume_name)
            replaced = await replaced_by(target, run.job_id)
    except Exception as unknown:
        raise error from unknown
    if volume is None or volume.provenance is None or volume.provenance.job_id != run.job_id:
        raise error
    log.warning("the volume exists although its commit failed", volume=volume.name, reason=str(error))
    return replace(volume, replaced=replaced)


def _zero(path: str, start: int, stop: int | None = None) -> None:
    """Zero ``[start, stop)`` of a device, by default to its end."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = blockdev.device_size(fd) if stop is None else stop
        blockdev.zero_range(fd, start, end, trio.from_thread.check_cancelled)
        os.fsync(fd)
    finally:
        os.close(fd)
