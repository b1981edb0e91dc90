"""Finds out what a job would do, without doing it: asks the source, the cache and the target, and changes nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from provisioner.contracts import CloneTarget, KeepingTarget, Placement, ProvisionedBy, Signer
from provisioner.contracts.errors import ImageFormatError, ProvisionerError, UnavailableError
from provisioner.download.checksum_lookup import Found, discover
from provisioner.pipeline import seed
from provisioner.pipeline.expectation import find_proof, key_for
from provisioner.pipeline.job_run import JobRun
from provisioner.pipeline.plan import check_checksum, check_fits, data_bytes, smallest_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provisioner.cache import Entry
    from provisioner.contracts import BlockTarget, Checksum, ImageSource, RemoteImage, StageRequest, Volume
    from provisioner.pipeline.job_run import JobSpec
    from provisioner.pipeline.pipeline import Pipeline
    from provisioner.signatures import Key

# Seconds for the source, and for the target. A client waits for the answer.
SOURCE_TIMEOUT = 15.0
TARGET_TIMEOUT = 10.0


class ReplacedVolume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The volume that the new one would replace. ``ours``: this service made it.

    ``keep_seconds``: for how long it would be kept; 0 if it would be lost, None while the placement is unknown.
    """

    name: str
    path: str
    size_bytes: int
    ours: bool
    keep_seconds: int | None = None


class Plan(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a job would do now. What is None is unknown because of a refusal, or does not apply.

    ``signed_by`` is known only if a checksum is signed, or the cached image was verified before. ``copy_reason``: why a
    target that clones other volumes copies this one. ``download_bytes`` and
    ``space_needed_bytes`` are what the cache and the target must have room for.
    """

    image_url: str
    source: str | None = None
    image_size_bytes: int | None = None
    download_bytes: int | None = None
    checksum: str | None = None
    checksum_from: Literal["request", "server"] | None = None
    signed_by: Signer | None = None
    cache_hit: bool | None = None
    volume_name: str | None = None
    volume_size_bytes: int | None = None
    target: str | None = None
    placement: Placement | None = None
    provisioned_by: ProvisionedBy | None = None
    copy_reason: str | None = None
    replaces: ReplacedVolume | None = None
    space_needed_bytes: int | None = None
    space_free_bytes: int | None = None
    space_freeable_bytes: int | None = None
    seed_name: str | None = None


class DryRun:
    """One dry run. ``refusals`` are the reasons why the job would not be accepted, or would fail."""

    def __init__(self, pipeline: Pipeline, spec: JobSpec) -> None:
        self._pipeline, self._spec = pipeline, spec
        self._checksum: Checksum | None = spec.checksum
        self._entry: Entry | None = None
        self._size_bytes = spec.size_bytes  # 0 until known: taken from the image
        self.refusals: list[ProvisionerError] = []
        self.plan = Plan(
            image_url=spec.image_url.without_query,
            volume_name=spec.volume_name,
            volume_size_bytes=spec.size_bytes or None,
            seed_name=spec.seed_name,
        )

    async def run(self) -> None:
        """Fill in the plan and the refusals."""
        with self._refusing_on_error("the source", SOURCE_TIMEOUT):
            await self._image()
        with self._refusing_on_error():
            self._pipeline.back_ends.converter(self._spec.image_format)
        with self._refusing_on_error("the target", TARGET_TIMEOUT):
            await self._volume(self._pipeline.back_ends.target(self._spec.target))

    @contextmanager
    def _refusing_on_error(self, what: str = "", limit: float = TARGET_TIMEOUT) -> Iterator[None]:
        """Record an error raised in the block, or its timeout after ``limit`` seconds, as a reason for refusal."""
        try:
            with trio.fail_after(limit):
                yield
        except ProvisionerError as error:
            self.refusals.append(error)
        except trio.TooSlowError:
            self.refusals.append(UnavailableError(f"{what} did not answer within {limit:g} s"))

    async def _image(self) -> None:
        plan, spec, pipeline = self.plan, self._spec, self._pipeline
        source = pipeline.back_ends.source_for(spec.image_url)
        plan.source = next(name for name, one in pipeline.back_ends.sources.items() if one is source)
        may_use = pipeline.may_use(spec)
        remote: RemoteImage | None = None
        key = await key_for(pipeline, spec, source)
        if spec.checksum is not None:
            entry = pipeline.cache.find(spec.checksum, spec.image_url.text, None, may_use)
            if entry is not None and (key is None or entry.signed_under == key.id):
                self._entry, plan.signed_by = entry, entry.signed_by if key is not None else None
        if self._entry is None:
            remote, self._checksum = await self._look_up(source, key)
            self._entry = pipeline.cache.find(self._checksum, spec.image_url.text, remote.version, may_use)
        if self._checksum is not None:
            plan.checksum = str(self._checksum)
            plan.checksum_from = "server" if spec.checksum is None else "request"
        plan.cache_hit = self._entry is not None
        if self._entry is None:
            assert remote is not None
            plan.download_bytes = remote.size
            if remote.size is not None:
                await pipeline.cache.check_room(remote.size)
            return
        plan.download_bytes, plan.image_size_bytes = 0, self._entry.size
        entry = self._entry
        is_fixed_vhd = entry.format == "raw" and entry.virtual_size not in {None, entry.size}
        if entry.format != spec.image_format and not (is_fixed_vhd and spec.image_format == "vpc"):
            raise ImageFormatError(f"the image was declared as {spec.image_format} but is {entry.format}")
        if entry.virtual_size is not None:
            self._fit(entry.virtual_size)

    async def _look_up(self, source: ImageSource, key: Key | None) -> tuple[RemoteImage, Checksum | None]:
        """Return the image and its checksum; note its size, and who signed the checksum.

        Raises SignatureError, ChecksumMissingError, SourceError.
        """
        spec, url = self._spec, self._spec.image_url
        found, proof = Found(spec.checksum), None
        if key is None and spec.checksum is None:
            remote, found = await self._pipeline.checksums.look_up(source, url, lambda: source.stat(url))
        else:
            remote = await source.stat(url)
        self.plan.image_size_bytes = remote.size
        if key is not None:
            proof = await find_proof(self._pipeline, spec, source, key)
            if proof.signed is not None:
                checksum, self.plan.signed_by = proof.signed
                found = Found(spec.checksum or checksum)
            if found.checksum is None:
                found = await discover(source, url, remote)
        check_checksum(found, url, required=self._pipeline.require_checksum and proof is None)
        return remote, found.checksum

    def _fit(self, virtual_size: int) -> None:
        """Check the volume's size, or derive it from the image's. Raises ImageTooLargeError."""
        self._size_bytes = self._size_bytes or smallest_size(virtual_size)
        self.plan.volume_size_bytes = self._size_bytes
        check_fits(virtual_size, self._size_bytes)

    async def _volume(self, target: BlockTarget) -> None:
        plan, name = self.plan, self._spec.volume_name
        assert name is not None, "a dry run is of a job with a volume"
        plan.target = target.name
        target.check_name(name)
        old = await target.find(name)
        plan.replaces = None if old is None else _replaced(old)
        capacity = await target.capacity()
        plan.space_free_bytes = capacity.free_bytes
        plan.space_freeable_bytes = capacity.freeable_bytes or None
        with self._refusing_on_error():
            await self._pipeline.check_guards(target, name)
        with self._refusing_on_error():
            await seed.check(target, self._spec)
        has_base = await self._find_base(target)
        if not self._size_bytes:  # only the image's header tells more
            return
        data = data_bytes(self._spec.image_format, plan.image_size_bytes, self._size_bytes)
        on_demand = capacity.data_percent is not None  # a thin pool allocates what is written
        with self._refusing_on_error():
            plan.placement = await target.placement(self._stage_request(data))
        in_place = plan.placement is Placement.IN_PLACE
        if old is not None and plan.placement is not None:
            plan.replaces = _replaced(old, _keep_seconds(target, old) if not in_place else 0)
        if isinstance(target, CloneTarget):
            with self._refusing_on_error():
                base_bytes = 0 if has_base else data or plan.image_size_bytes or self._size_bytes
                plan.copy_reason = await target.why_copy(self._stage_request(data), base_bytes)
        clones = isinstance(target, CloneTarget) and not in_place and plan.copy_reason is None
        plan.provisioned_by = ProvisionedBy.CLONE if clones else ProvisionedBy.COPY
        fresh = data if on_demand and data is not None else self._size_bytes
        plan.space_needed_bytes = 0 if in_place or (has_base and clones and on_demand) else fresh

    def _stage_request(self, data_bytes: int | None) -> StageRequest:
        run = JobRun("dry-run", 0.0, self._spec)
        digest = str(self._checksum) if self._checksum is not None else None
        return run.stage_request(digest, size_bytes=self._size_bytes, data_bytes=data_bytes)

    async def _find_base(self, target: BlockTarget) -> bool:
        """Return whether the target has the image already, so that nothing is downloaded."""
        checksum, spec = self._checksum, self._spec
        if not isinstance(target, CloneTarget) or checksum is None or checksum.algorithm != "sha256":
            return False
        if self._pipeline.may_use(spec) is not None and self._entry is None:
            return False
        base = await target.base(str(checksum), spec.image_format)
        if base is None:
            return False
        self.plan.cache_hit, self.plan.download_bytes = True, 0
        with self._refusing_on_error():
            self._fit(base.size_bytes)
        return True


def _keep_seconds(target: BlockTarget, volume: Volume) -> int:
    return int(target.keep_time(volume)) if isinstance(target, KeepingTarget) else 0


def _replaced(volume: Volume, keep_seconds: int | None = None) -> ReplacedVolume:
    return ReplacedVolume(
        name=volume.name,
        path=volume.path,
        size_bytes=volume.size_bytes,
        ours=volume.provenance is not None,
        keep_seconds=keep_seconds,
    )
