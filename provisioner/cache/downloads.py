"""The downloads in progress: one per image, shared by all jobs that wait for it.

A failure here fails one job and never ends the service: a file that cannot be removed becomes the job's RollbackError.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import structlog
import trio

from provisioner.cache.download import Download, as_provisioner_error
from provisioner.cache.partials import Content
from provisioner.contracts.cancel_shield import undoing
from provisioner.contracts.errors import ProvisionerError, RollbackError
from provisioner.contracts.urls import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from provisioner.cache.catalog import Users
    from provisioner.cache.entry import Expectation
    from provisioner.cache.partials import Partials
    from provisioner.config import CacheSettings
    from provisioner.contracts import ImageSource
    from provisioner.download.hashing import Hashes
    from provisioner.download.inspection import ImageInfo

    MakeRoom = Callable[[int, int], Awaitable[None]]
    Publish = Callable[[Download, Hashes, ImageInfo], Awaitable[None]]

log = structlog.get_logger(__name__)

# Bytes to reserve at a time for an image of unknown length: enough that the next reservation is made before a fast
# download has filled this one.
_GROWTH = 1024**3
# Seconds between two sweeps of outdated partial downloads.
_SWEEP_INTERVAL = 3600.0


class Downloads:
    """The downloads of one cache. ``users`` is shared with the cache, which evicts no entry that has users."""

    def __init__(
        self,
        settings: CacheSettings,
        users: Users,
        received: Callable[[int], None],
        make_room: MakeRoom,
        publish: Publish,
    ) -> None:
        self._settings = settings
        self._users = users
        self._received = received
        self._make_room = make_room
        self._publish = publish
        self._growth = max(1, min(_GROWTH, settings.max_size // 8))
        self._by_key: dict[str, Download] = {}
        # Held while a download is started, so that only one task does. A lock lives as long as a task refers to it.
        self._beginning: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._partials: Partials | None = None
        self._nursery: trio.Nursery | None = None
        # Set when the daemon stops: the files of downloads cancelled from now on are kept for the next start.
        self.stopping = False

    async def run(self, partials: Partials, task_status: trio.TaskStatus[None]) -> None:
        """Run the downloads until cancelled."""
        self._partials = partials
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(_SWEEP_INTERVAL)
                await trio.to_thread.run_sync(partials.sweep_old)

    def left_over(self) -> int:
        """Return the bytes of partial files left by earlier downloads."""
        return self._partials.left_over if self._partials is not None else 0

    def sweep(self, wanted: int) -> int:
        """Remove left-over partial files until ``wanted`` bytes are free; return the bytes freed. Blocking."""
        return self._partials.sweep(wanted) if self._partials is not None else 0

    def sweep_all(self) -> int:
        """Remove all left-over partial files; return the bytes freed. Blocking."""
        return self._partials.sweep_all() if self._partials is not None else 0

    def reserved(self) -> Iterator[tuple[int, int]]:
        """Yield (bytes reserved, bytes already written) for each download."""
        return ((download.growing_file.limit, download.growing_file.available) for download in self._by_key.values())

    @asynccontextmanager
    async def join(self, source: ImageSource, expectation: Expectation) -> AsyncIterator[Download]:
        """Join the image's download, starting it if necessary; it is cancelled when its last user leaves."""
        download = self._by_key.get(expectation.download_key) or await self._start(source, expectation)
        download.users += 1
        if download.entry is not None:
            self._users.hold(download.entry.sha256)
        try:
            yield download
        finally:
            download.users -= 1
            if download.entry is not None:
                self._users.release(download.entry.sha256)
            if not download.users:
                await self._leave(download)

    async def _start(self, source: ImageSource, expectation: Expectation) -> Download:
        key = expectation.download_key
        async with self._beginning.setdefault(key, trio.Lock()):
            waiting = self._by_key.get(key)  # another job may have started it
            if waiting is not None:
                return waiting
            size = expectation.remote.size
            room = self._growth if size is None else size
            fd, partial, there = await self._open(expectation)
            try:
                await self._make_room(room, there)
            except BaseException:
                await self._abandon(fd, partial, there)
                raise
            # No await from here on: the room counts as reserved once the download is in ``_by_key``.
            drops_pages = self._settings.page_cache == "give-back"
            download = Download(source, expectation, fd, partial, room, drops_pages=drops_pages)
            if there:
                log.info("resuming an earlier download", url=shown(expectation.remote.url), at_byte=there)
                download.growing_file.advance(there)
            assert self._nursery is not None
            self._by_key[key] = download
            self._nursery.start_soon(self._run, download)
            return download

    async def _open(self, expectation: Expectation) -> tuple[int, Path, int]:
        assert self._partials is not None
        remote = expectation.remote
        content = Content(remote.url.text, expectation.version, _resumable(expectation))
        try:
            return await trio.to_thread.run_sync(self._partials.open, content, remote.size)
        except OSError as error:
            raise as_provisioner_error(error) from error

    async def _abandon(self, fd: int, partial: Path, there: int) -> None:
        """Undo ``_open``: remove a new file; keep one from an earlier download for a later one."""
        partials = self._partials
        assert partials is not None

        def close() -> None:
            os.close(fd)
            if there:
                partials.keep(partial)
            else:
                partials.remove(partial)

        with undoing("remove the file of a download that did not start", 30):
            await trio.to_thread.run_sync(close)

    async def _run(self, download: Download) -> None:
        async def publish(hashes: Hashes, info: ImageInfo) -> None:
            await self._publish(download, hashes, info)

        try:
            async with trio.open_nursery() as nursery:
                if download.expectation.remote.size is None:
                    nursery.start_soon(self._extend_reservation, download)
                await download.run(self._settings.download_attempts, self._received, publish)
                nursery.cancel_scope.cancel()
        except* Exception as group:
            log.error("unexpected error in a download", exc_info=group)
        finally:
            self._close(download)
            await self._clean_up(download)
            download.ended.set()

    async def _clean_up(self, download: Download) -> None:
        """Remove the file of a failed download and close it if unused. An error is kept for the last job to raise.

        If the server broke the download off, the file is left for the next job to resume.
        """
        try:
            if download.entry is None and not self.stopping:
                assert self._partials is not None
                end = self._partials.keep if _worth_keeping(download) else self._partials.remove
                with undoing("remove the file of a failed download", 30):  # freeing a large file takes time
                    await trio.to_thread.run_sync(end, download.partial)
        except RollbackError as error:
            log.error("a download's file cannot be removed", file=download.partial.name, reason=error.message)
            download.rollback_error = error
        if not download.users:
            try:
                await download.close()
            except RollbackError as error:
                download.rollback_error = download.rollback_error or error

    async def _extend_reservation(self, download: Download) -> None:
        """Reserve more room for an image of unknown size as it grows; without room, the download fails at its limit."""
        growing_file = download.growing_file
        with suppress(ProvisionerError):
            while True:
                await growing_file.arrived(0, growing_file.limit - self._growth // 2)
                await self._make_room(self._growth, 0)
                growing_file.limit += self._growth

    async def _leave(self, download: Download) -> None:
        """Cancel the download, or close its file if it has ended. Raises RollbackError if something is left behind."""
        if download.ended.is_set():
            await download.close()
        else:
            self._close(download)
            download.scope.cancel(reason="no job uses this download any more")
            with undoing("end a download", 30):
                await download.ended.wait()  # the download closes its file after its threads have ended
        if download.rollback_error is not None:
            raise download.rollback_error

    def _close(self, download: Download) -> None:
        if self._by_key.get(download.expectation.download_key) is download:
            del self._by_key[download.expectation.download_key]


def _worth_keeping(download: Download) -> bool:
    return download.broken_off and download.growing_file.available > 0 and _resumable(download.expectation) is not None


def _resumable(expectation: Expectation) -> str | None:
    """Return the key of the content, or None if a later download could not verify that it is the same."""
    remote = expectation.remote
    sure = expectation.checksum is not None and remote.accepts_ranges and remote.size
    return expectation.download_key if sure else None
