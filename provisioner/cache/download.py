"""One download, shared by the jobs that wait for it: fetches, verifies and publishes an image."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.cache.image import CachedImage, CacheView
from provisioner.contracts.cancel_shield import shielded, undoing
from provisioner.contracts.errors import (
    CacheError,
    CacheFullError,
    ChecksumMismatchError,
    EncodedDownloadError,
    MixedDownloadError,
    ProvisionerError,
    RemoteUnavailableError,
    RollbackError,
)
from provisioner.contracts.tasks import first_cause
from provisioner.contracts.threads import as_batch, run_long
from provisioner.contracts.urls import shown
from provisioner.download.decoded import LABELS
from provisioner.download.fetch import fetch
from provisioner.download.growing_file import GrowingFile
from provisioner.download.hashing import hash_and_inspect
from provisioner.download.page_cache import BEHIND, drop_pages, write_out
from provisioner.download.read_ahead import ReadAhead

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from provisioner.cache.entry import Entry, Expectation
    from provisioner.contracts import ImageSource, Signer
    from provisioner.download.hashing import Hashes
    from provisioner.download.inspection import ImageInfo

log = structlog.get_logger(__name__)

# Seconds to publish: enough to flush a large image to a slow disk, but not to wait for a disk that hangs.
PUBLISH_TIMEOUT = 300.0


class Download(CachedImage):
    """A download shared by ``users`` jobs. Ends when it is published, when it fails, or when all jobs have left."""

    def __init__(
        self,
        source: ImageSource,
        expectation: Expectation,
        fd: int,
        partial: Path,
        room: int,
        *,
        drops_pages: bool = True,
    ) -> None:
        self.hit = False
        self.source = source
        self.expectation = expectation
        self.partial = partial
        self.growing_file = GrowingFile(fd, room)
        remote = replace(expectation.remote, version=expectation.version, accepts_ranges=expectation.may_resume)
        self._remote = remote  # as it is fetched: what may resume accepts ranges
        self._read_ahead = ReadAhead(source, remote, self.growing_file)
        self._drops_pages = drops_pages
        self._viewed = False
        self.users = 0
        self.entry: Entry | None = None
        self.signer: Signer | None = None
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self._info: ImageInfo | None = None
        self.error: ProvisionerError | None = None
        # The server ended the transfer early, so that the next job may resume it.
        self.broken_off = False
        self.rollback_error: RollbackError | None = None  # a failed cleanup, raised by its last user
        self._inspected = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        # A limiter of its own: with the default one, many hashing downloads would leave no thread for writing.
        self._hashing = trio.CapacityLimiter(1)

    async def info(self) -> ImageInfo:
        await self._inspected.wait()
        if self._info is None:
            raise self._failure()
        return self._info

    async def downloaded(self) -> None:
        await self.growing_file.completed()

    async def verified(self) -> Entry:
        await self.ended.wait()
        if self.entry is None:
            raise self._failure()
        return self.entry

    @property
    def size(self) -> int | None:
        return self.growing_file.size if self.growing_file.size is not None else self.expectation.remote.size

    @property
    def available(self) -> int:
        return self.growing_file.available

    @property
    def waiting_for(self) -> str | None:
        return None if self.ended.is_set() else self.growing_file.waiting_for

    @property
    def fd(self) -> int:
        return self.growing_file.fd

    async def arrived(self, start: int, stop: int) -> None:
        await self.growing_file.arrived(start, stop)

    def view(self, image_format: str, virtual_size: int) -> CacheView:
        size = self.size
        assert size is not None
        self._viewed = True
        return CacheView(
            self.growing_file.fd,
            image_format,
            size,
            virtual_size,
            self.growing_file,
            self._read_ahead,
            drops_pages=self._drops_pages,
        )

    def _failure(self) -> ProvisionerError:
        return self.error or RemoteUnavailableError("the download was cancelled")

    async def run(
        self,
        attempts: int,
        received: Callable[[int], None],
        publish: Callable[[Hashes, ImageInfo], Awaitable[None]],
    ) -> None:
        """Download, verify and publish. Raises nothing but Cancelled; an error is kept for the users.

        ``publish`` sets ``entry``.
        """
        try:
            with self.scope:
                hashes = await self._transfer(attempts, received)
                self._check_digest(hashes.digests)
                await run_long(self._read_ahead.check, self.growing_file.fd)
                if self.expectation.proof is not None:
                    self.signer = await self.expectation.proof.check(hashes.digests, self.growing_file.fd)
                assert self._info is not None
                with shielded("publish the image in the cache", PUBLISH_TIMEOUT):
                    await publish(hashes, self._info)
        except* Exception as group:  # noqa: BLE001 - one download's error must not affect another
            self.error = as_provisioner_error(group)
            log.warning("download failed", url=shown(self.expectation.remote.url), reason=self.error.message)
        finally:
            if self.entry is None:
                self.growing_file.fail(self._failure())
            self._inspected.set()

    async def _transfer(self, attempts: int, received: Callable[[int], None]) -> Hashes:
        hashes: list[Hashes] = []
        checksum = self.expectation.checksum
        proof = self.expectation.proof
        algorithms = {"sha256", checksum.algorithm if checksum else "sha256", *(proof.needs if proof else ())}

        async def hash_growing_file() -> None:
            try:
                found = await trio.to_thread.run_sync(
                    as_batch,
                    hash_and_inspect,
                    self.growing_file,
                    algorithms,
                    self._on_inspected,
                    self._on_hashed,
                    limiter=self._hashing,
                )
                hashes.append(found)
            except Exception as error:
                self.growing_file.fail(as_provisioner_error(error))
                raise

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hash_growing_file)
            try:
                ranges = 1 if self.expectation.one_connection else self.source.parallel_ranges
                await fetch(self.source, self._remote, self.growing_file, attempts, received, ranges)
            except BaseException as error:
                cause = as_provisioner_error(error) if isinstance(error, Exception) else self._failure()
                # Decided before the users hear of it: the last one to leave cancels the download.
                self.broken_off = (
                    isinstance(error, Exception)
                    and isinstance(cause, RemoteUnavailableError)
                    and not self.scope.cancel_called
                )
                self.growing_file.fail(cause)
                raise
        return hashes[0]

    def _on_inspected(self, info: ImageInfo) -> None:
        self._info = info
        self._token.run_sync_soon(self._inspected.set)

    def _on_hashed(self, start: int, stop: int) -> None:
        """Drop hashed pages, unless a converter still reads them. Runs in the hashing thread."""
        self.growing_file.hashed = stop
        write_out(self.growing_file.fd, start, stop)
        if self._drops_pages and not self._viewed:
            drop_pages(self.growing_file.fd, 0, start - BEHIND)

    def _check_digest(self, digests: dict[str, str]) -> None:
        checksum = self.expectation.checksum
        if checksum is not None and digests[checksum.algorithm] != checksum.hex:
            # Without an announced length, a broken connection looks like the end.
            unsure = self.growing_file.mixed or self.expectation.remote.size is None
            kind = MixedDownloadError if unsure else ChecksumMismatchError
            if self.growing_file.content_encoding in LABELS:
                kind = EncodedDownloadError
            origin = f" by {self.expectation.origin}" if self.expectation.origin else ""
            raise kind(
                f"the image's {checksum.algorithm} is {digests[checksum.algorithm]}, "
                f"but {checksum.hex} was expected{origin}"
            )

    async def close(self) -> None:
        """Close the file. Call it only after the last user has left and all threads that use the file have ended.

        Runs in a thread: if the file has been unlinked, this frees its blocks.
        """
        with undoing("close a downloaded image", 30):
            await trio.to_thread.run_sync(self._release)

    def _release(self) -> None:
        if self._drops_pages:
            drop_pages(self.growing_file.fd, 0, self.growing_file.available)
        os.close(self.growing_file.fd)


def as_provisioner_error(error: BaseException) -> ProvisionerError:
    """Return the cause as a ProvisionerError: our own errors unchanged, system errors translated."""
    cause = first_cause(error)
    if isinstance(cause, ProvisionerError):
        return cause
    if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
        return CacheFullError("the cache's file system is full")
    if isinstance(cause, OSError):
        return CacheError(f"the cache cannot be written: {cause.strerror}")
    log.error("unexpected error in a download", exc_info=error)
    return CacheError(f"the download failed: internal error ({type(cause).__name__})")
