"""The cloud-init seed of a job: the volume ``NAME-seed`` beside the volume ``NAME``, on the same target.

The commit of the volume decides about both. The seed is committed right before it, and rolled back unless the volume
is committed too: it is removed, and the seed that it replaced, which the target keeps meanwhile, gets its name again.
``settle`` finishes either way, from what the target has, so it also does so after a crash.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts import (
    RESTORE_KEEP,
    KeepingTarget,
    Placement,
    Provenance,
    StageRequest,
    Volume,
    blockdev,
    pwrite_all,
    run_long,
    shielded,
    undoing,
)
from provisioner.contracts.errors import (
    NoSpaceError,
    RollbackError,
    TargetError,
    UnavailableError,
    VolumeExistsError,
    VolumeNameError,
)
from provisioner.pipeline.cloud_init import SEED_BYTES, seed_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from provisioner.contracts import BlockTarget, Device, KeptVolume, StagedVolume
    from provisioner.pipeline.job_run import JobRun, JobSpec

log = structlog.get_logger(__name__)

# Seconds for the look-ups, a removal and a restore, each of which may wait for LVM's own retries.
_SETTLE_TIMEOUT = 180.0


def is_seed_of(seed: Volume | None, volume_name: str) -> bool:
    """Return whether ``seed`` is the cloud-init seed of that volume."""
    return seed is not None and seed.provenance is not None and seed.provenance.seed_of == volume_name


async def check(target: BlockTarget, spec: JobSpec) -> None:
    """Check before the work begins that the job's seed can be placed, and that the job leaves no seed behind.

    Raises VolumeExistsError, VolumeInUseError or NoSpaceError.
    """
    assert spec.volume_name is not None
    name = seed_name(spec.volume_name)
    if spec.volume_name.endswith(seed_name("")):
        found = await target.find(spec.volume_name)
        if found is not None and found.provenance is not None and found.provenance.seed_of is not None:
            owner = found.provenance.seed_of
            raise VolumeExistsError(f"volume {found.name} is the cloud-init seed of {owner}; choose another name")
    try:
        old = await target.find(name)
    except VolumeNameError:
        if spec.seed_name is None:
            return
        raise
    if spec.seed_name is None:
        if is_seed_of(old, spec.volume_name):
            raise VolumeExistsError(
                f"volume {spec.volume_name} has the cloud-init seed {name}, which would stay beside the new volume; "
                "submit the job with cloud_init, or remove the seed first"
            )
        return
    if old is not None and not is_seed_of(old, spec.volume_name):
        raise VolumeExistsError(
            f"the cloud-init seed needs the name {name}, but another volume has it; remove it or choose another name"
        )
    if old is not None and not isinstance(target, KeepingTarget):
        raise VolumeExistsError(f"target {target.name} cannot replace the cloud-init seed {name}; remove it first")
    if await target.placement(_request(spec, "", 0.0)) is Placement.IN_PLACE:
        raise NoSpaceError(f"there is no room to stage a second cloud-init seed {name}; free some space")


async def commit_both(
    run: JobRun,
    target: BlockTarget,
    check_unused: Callable[[str], Awaitable[None]],
    commit_volume: Callable[[Volume | None], Awaitable[None]],
    seconds: float,
) -> None:
    """Commit the job's seed, if it has one, within ``seconds``, and then its volume.

    ``check_unused`` raises if a volume is in use. ``commit_volume`` gets the seed and sets the run's outcome; if there
    is none in the end, the seed is rolled back. Raises RollbackError if that fails.
    """
    spec = run.spec
    assert spec.volume_name is not None
    if spec.seed_name is None:
        await check_unused(spec.volume_name)
        await commit_volume(None)
        return
    committing = False
    try:
        async with _staged(run, target) as staged:
            await check_unused(spec.volume_name)
            await check_unused(spec.seed_name)
            committing = True
            with shielded("commit the cloud-init seed", seconds):
                seed = await staged.commit(None)
            await commit_volume(seed)  # no cancel comes in between: this is shielded, too
    finally:
        # Only now is a replaced seed among the kept volumes.
        if committing:
            await _settle_run(run, target)


@asynccontextmanager
async def _staged(run: JobRun, target: BlockTarget) -> AsyncIterator[StagedVolume]:
    """Stage the seed and write it."""
    spec, image = run.spec, run.seed_image
    assert spec.seed_name is not None
    assert image is not None
    old = await target.find(spec.seed_name)
    # Kept until the volume is committed, unless the settings keep it anyway.
    keep = old is not None and isinstance(target, KeepingTarget) and not target.keep_time(old)
    request = _request(spec, run.job_id, run.created_at, RESTORE_KEEP if keep else 0.0)
    async with target.stage(request, verified=False) as staged:
        await run_long(_write, image, staged.device)
        yield staged


async def _settle_run(run: JobRun, target: BlockTarget) -> None:
    """Settle at the end of a commit. Once the volume is committed, a failure only leaves a kept seed for a while."""
    name = run.spec.volume_name
    assert name is not None
    try:
        with undoing(f"settle the cloud-init seed of {name}", _SETTLE_TIMEOUT):
            await settle(target, run.job_id, name, latest=True)
    except RollbackError as error:
        if run.outcome is None:
            raise
        log.warning("a replaced cloud-init seed was not removed; it is removed later", reason=error.message)


async def settle(target: BlockTarget, job_id: str, volume_name: str, *, latest: bool) -> None:
    """Finish the seed of a job that has made its volume; roll back the seed of any other. Idempotent.

    The job must not be running, or be in its commit. ``latest``: no later job can have made the volume; otherwise the
    replaced seed is restored only if it was made with the volume. Raises TargetError and its subclasses.
    """
    name = seed_name(volume_name)
    volume, seed = await target.find(volume_name), await target.find(name)
    old = await _kept_by(target, job_id, name)
    origin = None if volume is None else volume.provenance
    if origin is not None and origin.job_id == job_id:
        if old is not None and isinstance(target, KeepingTarget) and not target.keep_time(_as_volume(old)):
            await target.remove_kept(old.kept_as)
        return
    if seed is not None and is_seed_of(seed, volume_name) and _made_by(seed, job_id):
        await target.remove(name)
        log.info("the cloud-init seed was rolled back", volume=name)
        seed = None
    if old is None or seed is not None or not isinstance(target, KeepingTarget):
        return
    made_together = origin is not None and old.provenance is not None and old.provenance.job_id == origin.job_id
    if latest or made_together or volume is None:
        await target.restore(old.kept_as, job_id)
        log.info("the replaced cloud-init seed was restored", volume=name)


def _made_by(volume: Volume, job_id: str) -> bool:
    return volume.provenance is not None and volume.provenance.job_id == job_id


async def _kept_by(target: BlockTarget, job_id: str, name: str) -> KeptVolume | None:
    """Return the seed that the job has replaced, if the target keeps it."""
    if not isinstance(target, KeepingTarget):
        return None
    return next((kept for kept in await target.kept() if (kept.job_id, kept.volume) == (job_id, name)), None)


def _as_volume(kept: KeptVolume) -> Volume:
    return Volume(kept.volume, kept.target, "", kept.size_bytes, kept.provenance)


def _request(spec: JobSpec, job_id: str, created_at: float, keep_seconds: float = 0.0) -> StageRequest:
    assert spec.seed_name is not None
    provenance = Provenance(job_id, "", None, created_at, seed_of=spec.volume_name)
    return StageRequest(spec.seed_name, SEED_BYTES, provenance, SEED_BYTES, keep_seconds)


def _write(image: Path, device: Device) -> None:
    """Write the image and zeros after it to the device; it is on stable storage when this returns."""
    try:
        data = image.read_bytes()
    except FileNotFoundError as error:
        raise UnavailableError("the job's cloud-init data is lost; submit the job again") from error
    except OSError as error:
        raise UnavailableError(f"the job's cloud-init data cannot be read: {error.strerror}") from error
    try:
        fd = os.open(device.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            pwrite_all(fd, data, 0)
            if device.zero_tail and not device.reads_zero:
                blockdev.zero_range(fd, len(data), blockdev.device_size(fd), lambda: None)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise TargetError(f"the cloud-init seed cannot be written: {error.strerror}") from error
