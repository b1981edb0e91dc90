"""Images that clients upload: received into a partial file, verified, and published like a download.

An upload is one request. If its client goes, the partial file is kept and a later request goes on where it ended, also
after a restart of the service. The file belongs to one caller, so no caller completes an image of which another
sent the first part. An image that is not what was announced leaves nothing behind.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from provisioner.cache.download import PUBLISH_TIMEOUT, as_provisioner_error
from provisioner.cache.partials import Content
from provisioner.cache.upload_source import HOST, SCHEME
from provisioner.contracts import ImageUrl, RemoteImage, pwrite_all
from provisioner.contracts.cancel_shield import shielded, undoing
from provisioner.contracts.errors import (
    ChecksumMismatchError,
    ConflictError,
    ImageFormatError,
    TooManyRequestsError,
    UnavailableError,
)
from provisioner.contracts.tasks import first_cause
from provisioner.contracts.threads import as_batch, run_long
from provisioner.download.growing_file import GrowingFile
from provisioner.download.hashing import hash_and_inspect
from provisioner.download.page_cache import BEHIND, drop_pages, write_out

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from provisioner.cache.entry import Entry
    from provisioner.cache.partials import Partials
    from provisioner.config import CacheSettings
    from provisioner.download.hashing import Hashes
    from provisioner.download.inspection import ImageInfo

    MakeRoom = Callable[[int, int], Awaitable[None]]

log = structlog.get_logger(__name__)

# Uploads at once, of all callers and of one. Each has a thread that hashes; more would only share the disk.
MOST = 8
MOST_PER_CALLER = 4


@dataclass(frozen=True, slots=True)
class Upload:
    """What a caller wants to upload: ``size`` bytes with this SHA-256 (hex), under a name.

    ``owner`` is the caller's id. ``image_format`` is what the image must be, None if any format will do. ``pinned``:
    the image is not evicted.
    """

    sha256: str
    size: int
    name: str
    owner: str
    image_format: str | None = None
    pinned: bool = True

    @property
    def url(self) -> ImageUrl:
        """Return the url by which jobs use the image."""
        return ImageUrl.parse(f"{SCHEME}://{HOST}/{self.name}")

    @property
    def digest(self) -> str:
        """Return the digest in the API's form."""
        return f"sha256:{self.sha256}"

    @property
    def remote(self) -> RemoteImage:
        """Return the image as the cache records it: the digest is the version behind the name."""
        return RemoteImage(self.url, self.size, self.digest, accepts_ranges=True)


class Body(Protocol):
    """The bytes that a client sends."""

    async def read(self) -> bytes:
        """Return the next bytes; nothing at the end."""


class Publish(Protocol):
    """Publishes a verified file in the cache and returns its entry."""

    async def __call__(self, fd: int, partial: Path, upload: Upload, hashes: Hashes, info: ImageInfo) -> Entry: ...


@dataclass(slots=True)
class _Running:
    """An upload in progress. ``worthless``: what has arrived is not what was announced, or cannot be stored."""

    growing_file: GrowingFile | None = None
    info: ImageInfo | None = None
    hashes: Hashes | None = None
    worthless: bool = False
    hashing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    writing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))


class Uploads:
    """The uploads of one cache."""

    def __init__(self, settings: CacheSettings, make_room: MakeRoom, publish: Publish) -> None:
        self._settings = settings
        self._make_room = make_room
        self._publish = publish
        self._running: dict[tuple[str, str], _Running] = {}
        self.partials: Partials | None = None  # set when the cache is open

    def reserved(self) -> Iterator[tuple[int, int]]:
        """Yield (bytes reserved, bytes already written) for each upload."""
        files = (one.growing_file for one in self._running.values())
        return ((file.limit, file.available) for file in files if file is not None)

    def state(self, upload: Upload) -> tuple[bool, int]:
        """Return whether the upload is in progress, and how many bytes of it are here."""
        running = self._running.get(_key(upload))
        if running is not None:
            return True, running.growing_file.available if running.growing_file is not None else 0
        assert self.partials is not None
        return False, self.partials.kept(_content(upload))

    async def receive(self, upload: Upload, start: int, body: Body) -> Entry:
        """Receive the image's bytes from offset ``start`` on; return its entry when it is verified and published.

        What is there from ``start`` on is overwritten. Raises ConflictError if fewer bytes are there or another request
        uploads the image, CacheFullError, CorruptImageError, UnsafeImageError, ImageFormatError, ChecksumMismatchError.
        """
        key = _key(upload)
        if key in self._running:
            raise ConflictError("another request uploads this image at the moment; wait for it, or try again later")
        own = sum(owner == upload.owner for owner, _ in self._running)
        if len(self._running) >= MOST or own >= MOST_PER_CALLER:
            raise TooManyRequestsError(f"{len(self._running)} uploads are in progress; try again later")
        running = self._running[key] = _Running()  # before the first await, so that there is only one
        try:
            return await self._receive(running, upload, start, body)
        finally:
            del self._running[key]

    async def _receive(self, running: _Running, upload: Upload, start: int, body: Body) -> Entry:
        partials, entry = self.partials, None
        assert partials is not None
        try:
            fd, partial, there = await run_long(partials.open, _content(upload), upload.size)
        except OSError as error:
            raise as_provisioner_error(error) from error
        try:
            if start > there:
                raise ConflictError(f"{there} bytes of the image are here; go on from byte {there}")
            if start < there:
                await run_long(os.ftruncate, fd, start)
            await self._make_room(upload.size, start)
            # No await from here on: the room counts as reserved now.
            running.growing_file = growing_file = GrowingFile(fd, upload.size)
            if start:
                growing_file.advance(start)
                log.info("resuming an upload", digest=upload.digest, at_byte=start)
            await self._transfer(running, growing_file, upload, body)
            entry = await self._verified(running, growing_file, partial, upload)
            log.info("an image was uploaded", digest=upload.digest, image=str(upload.url), bytes=upload.size)
            return entry
        finally:
            keeps = entry is None and not running.worthless
            with undoing("end an upload", 60):  # freeing a large file takes time
                await run_long(self._close, fd, partial, keeps, entry is not None)

    def _close(self, fd: int, partial: Path, keeps: bool, published: bool) -> None:
        """Close the file and decide what becomes of it. Blocking."""
        assert self.partials is not None
        size = os.fstat(fd).st_size
        if self._settings.page_cache == "give-back":
            drop_pages(fd, 0, size)
        os.close(fd)
        if keeps and size:
            self.partials.keep(partial)
        elif not published:
            self.partials.remove(partial)

    async def _transfer(self, running: _Running, growing_file: GrowingFile, upload: Upload, body: Body) -> None:
        """Write the body and hash the file as it grows. An error of one ends the other."""
        interrupted = False

        async def hash_growing_file() -> None:
            try:
                running.hashes = await trio.to_thread.run_sync(
                    as_batch,
                    hash_and_inspect,
                    growing_file,
                    {"sha256"},
                    lambda info: _inspected(running, upload, info),
                    self._write_out(growing_file.fd),
                    limiter=running.hashing,
                )
            except Exception:
                if not interrupted:  # else the writer's own error is the one to report
                    running.worthless = True
                    raise

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hash_growing_file)
                try:
                    await self._write(running, growing_file, body)
                except BaseException:
                    interrupted = True
                    growing_file.fail(UnavailableError("the upload was interrupted"))
                    raise
        except BaseExceptionGroup as group:
            if isinstance(first_cause(group), trio.Cancelled):
                raise
            raise as_provisioner_error(group) from group

    async def _write(self, running: _Running, growing_file: GrowingFile, body: Body) -> None:
        """Write the body to the file. While the disk is slow, nothing is read from the client."""
        offset = growing_file.available
        while data := await body.read():
            try:
                await trio.to_thread.run_sync(pwrite_all, growing_file.fd, data, offset, limiter=running.writing)
            except OSError as error:
                running.worthless = True
                raise as_provisioner_error(error) from error
            offset += len(data)
            growing_file.advance(offset)
        if offset != growing_file.limit:
            raise ConflictError(f"{offset} of {growing_file.limit} bytes have arrived; go on from byte {offset}")
        growing_file.finish()

    def _write_out(self, fd: int) -> Callable[[int, int], None]:
        drops = self._settings.page_cache == "give-back"

        def hashed(start: int, stop: int) -> None:
            write_out(fd, start, stop)
            if drops:
                drop_pages(fd, 0, start - BEHIND)

        return hashed

    async def _verified(self, running: _Running, growing_file: GrowingFile, partial: Path, upload: Upload) -> Entry:
        assert running.hashes is not None
        assert running.info is not None
        found = running.hashes.digests["sha256"]
        if found != upload.sha256:
            running.worthless = True
            raise ChecksumMismatchError(
                f"the uploaded image's sha256 is {found}, but {upload.sha256} was announced; nothing was kept"
            )
        with shielded("publish the image in the cache", PUBLISH_TIMEOUT):
            return await self._publish(growing_file.fd, partial, upload, running.hashes, running.info)


def _inspected(running: _Running, upload: Upload, info: ImageInfo) -> None:
    """Note what the image is. Raises ImageFormatError if it is not what the caller says. Runs in the hashing thread."""
    wanted = upload.image_format
    # A fixed VHD is raw until its end, which has the footer.
    if wanted is not None and wanted != info.format and (wanted, info.format) != ("vpc", "raw"):
        raise ImageFormatError(f"the image was declared as {wanted} but is {info.format}; nothing was kept")
    running.info = info


def _key(upload: Upload) -> tuple[str, str]:
    return upload.owner, upload.sha256


def _content(upload: Upload) -> Content:
    """Return the content of the partial file; its bytes are verified by the digest."""
    key = f"upload {upload.sha256} {upload.owner}"
    return Content(key, None, key)
