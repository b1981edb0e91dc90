"""The source ``file``: which urls it serves, and files as streams. ``OpenFile`` reads, in threads that may hang."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple
from urllib.parse import quote

import trio

from lvp_source_file.beneath import names_in
from lvp_source_file.errors import meaning
from lvp_source_file.open_file import OpenFile, Status
from lvp_source_file.paths import Place, place_of, prefix_of
from provisioner.contracts import MIB, BackEndContext, ImageSource, ImageStream, RemoteImage, run_long
from provisioner.contracts.errors import RemoteChangedError, RemoteUnavailableError, UrlNotAllowedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from lvp_source_file.settings import FileSettings
    from provisioner.contracts import ImageUrl

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A piece this long amortizes two changes of threads, and is read within stall_timeout from a slow server.
PIECE = 1 * MIB
# Threads that may read, or hang, in one folder at once.
THREADS = 16


class FileSource(ImageSource):
    """Serves the regular files beneath the configured folders."""

    def __init__(self, settings: FileSettings, context: BackEndContext) -> None:
        self._settings = settings
        self._name = context.name
        # One for each folder, so that a file system that hangs takes no thread of the others.
        self._threads = {str(folder): trio.CapacityLimiter(THREADS) for folder in settings.folders}

    def owns(self, url: ImageUrl) -> bool:
        return place_of(url, self._settings.folders) is not None

    def prefixes(self) -> Sequence[str]:
        return [prefix_of(folder) for folder in self._settings.folders]

    def checksum_files(self) -> Sequence[str]:
        return self._settings.checksum_files

    async def stat(self, url: ImageUrl) -> RemoteImage:
        async with self._opened(url) as (_, status):
            return RemoteImage(url, status.size, status.version, accepts_ranges=True)

    @asynccontextmanager
    async def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        place = self._place(url)
        if place.is_folder:
            yield _Listing(await self._calls(url, place).run(names_in, place.folder, place.path))
            return
        async with self._opened(url) as (file, status):
            if version is not None and status.version != version:
                raise _changed(url)
            yield _FileStream(file, url, status, start, stop, exact=version is not None)

    @asynccontextmanager
    async def _opened(self, url: ImageUrl) -> AsyncIterator[tuple[_Calls, Status]]:
        place = self._place(url)
        calls = self._calls(url, place)
        try:
            yield calls, await calls.run(calls.file.open, place.folder, place.path)
        finally:
            # Not waited for: closing may hang too, and nothing depends on it.
            trio.lowlevel.start_thread_soon(calls.file.close, lambda _: None)

    def _place(self, url: ImageUrl) -> Place:
        place = place_of(url, self._settings.folders)
        if place is None:
            raise UrlNotAllowedError(f"source {self._name} does not serve this image URL")
        return place

    def _calls(self, url: ImageUrl, place: Place) -> _Calls:
        return _Calls(str(url), place, self._threads[place.folder], self._settings.stall_timeout)


class _Calls:
    """The calls of one open file: each has a time limit, and a cancel leaves its thread behind."""

    def __init__(self, name: str, place: Place, threads: trio.CapacityLimiter, limit: float) -> None:
        self.file = OpenFile()
        self._name, self._folder, self._threads, self._limit = name, place.folder, threads, limit

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return the result of blocking ``work``. Raises SourceError."""
        with trio.move_on_after(self._limit):
            try:
                return await trio.to_thread.run_sync(work, *args, limiter=self._threads, abandon_on_cancel=True)
            except OSError as error:
                raise meaning(error, self._name, self._folder) from error
        raise RemoteUnavailableError(
            f"{self._name}: the file system of {self._folder} did not answer in {self._limit:g} s"
        )


class _Listing(ImageStream):
    """The names in a folder as a web server lists them, for the url patterns of named images."""

    start = 0

    def __init__(self, names: Sequence[bytes]) -> None:
        self._names = names

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for name in self._names:
            yield f'<a href="{quote(name)}"></a>\n'.encode()


class _FileStream(ImageStream):
    def __init__(
        self, calls: _Calls, url: ImageUrl, status: Status, start: int, stop: int | None, *, exact: bool
    ) -> None:
        self.start = start
        self._calls, self._url, self._status = calls, url, status
        self._stop = status.size if stop is None else min(stop, status.size)
        self._exact = exact

    async def __aiter__(self) -> AsyncIterator[bytes]:
        position = self.start
        while position < self._stop:
            size = min(PIECE, self._stop - position)
            piece = await self._calls.run(self._calls.file.read, position, size)
            if not piece:  # truncated meanwhile
                raise _changed(self._url)
            position += len(piece)
            yield piece
        await self._check_unchanged()

    async def save(self, fd: int, report: Callable[[int], None]) -> int:
        """Share the file's blocks with ``fd`` if the file system can do that; else copy them."""
        if self.start == 0 and self._stop == self._status.size:
            size = await run_long(self._calls.file.clone_to, fd)
            if size is not None:
                await self._check_unchanged()
                if size != self._stop:
                    raise _changed(self._url)
                report(size)
                return size
        return await super().save(fd, report)

    async def _check_unchanged(self) -> None:
        """Raise RemoteChangedError if the file was written since it was opened; with a version, also if replaced."""
        now = await self._calls.run(self._calls.file.status)
        same = now == self._status if self._exact else now.has_content_of(self._status)
        if not same:
            raise _changed(self._url)


def _changed(url: ImageUrl) -> RemoteChangedError:
    return RemoteChangedError(f"{url} changed while it was being read")
