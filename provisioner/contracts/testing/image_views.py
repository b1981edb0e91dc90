"""Views of images for tests: of a complete file, and of one that a test feeds piece by piece."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import CorruptImageError
from provisioner.contracts.source import pwrite_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self


class _View:
    """A context manager with an open descriptor. ``checked`` lists every range that a converter checked."""

    def __init__(self, path: Path, format: str, virtual_size: int, flags: int) -> None:  # noqa: A002
        self.fd = -1
        self.format = format
        self.virtual_size = virtual_size
        self.checked: list[tuple[int, int]] = []
        self._path = path
        self._flags = flags

    def __enter__(self) -> Self:
        self.fd = os.open(self._path, self._flags | os.O_CLOEXEC, 0o600)
        return self

    def check(self, start: int, data: memoryview) -> None:
        """Record the range; the check always passes."""
        self.checked.append((start, start + len(data)))

    def check_zeros(self, start: int, stop: int) -> None:
        """Record the range; the check always passes."""
        self.checked.append((start, stop))

    def check_all(self, check: Callable[[], None]) -> None:
        """Record the whole file; the check always passes."""
        check()
        self.checked.append((0, os.fstat(self.fd).st_size))

    def spent(self, start: int, stop: int) -> None:
        """Keep the data in memory."""

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self.fd)


class FileView(_View):
    """A view of a complete image. ``virtual_size`` defaults to the file's size, which is correct for raw."""

    def __init__(self, path: Path, format: str = "raw", virtual_size: int | None = None) -> None:  # noqa: A002
        self.size = path.stat().st_size
        super().__init__(path, format, self.size if virtual_size is None else virtual_size, os.O_RDONLY)

    @property
    def available(self) -> int:
        return self.size

    async def arrived(self, start: int, stop: int) -> None:
        await trio.lowlevel.checkpoint()
        _check_range(start, stop, self.size)

    async def ahead(self, start: int, stop: int) -> bytes | None:
        raise AssertionError(f"bytes {start} to {stop} were already available")


class ArrivingView(_View):
    """A view of an image with ``content``; the file at ``path`` stays empty until a test feeds it.

    ``asked`` lists every range that was waited for. If ``fetches_ahead`` is set, ranges can be fetched ahead of the
    download; ``fetched`` lists them.
    """

    def __init__(self, path: Path, content: bytes, format: str = "raw", virtual_size: int | None = None) -> None:  # noqa: A002
        self.size = len(content)
        self.available = 0
        self.asked: list[tuple[int, int]] = []
        self.fetches_ahead = False
        self.fetched: list[tuple[int, int]] = []
        self._content = content
        self._error: Exception | None = None
        self._waiting = trio.Event()
        self._changed = trio.Event()
        super().__init__(
            path, format, self.size if virtual_size is None else virtual_size, os.O_RDWR | os.O_CREAT | os.O_TRUNC
        )

    def feed(self, count: int | None = None) -> None:
        """Write the next ``count`` bytes, or all missing ones."""
        stop = self.size if count is None else min(self.size, self.available + count)
        pwrite_all(self.fd, self._content[self.available : stop], self.available)
        self.available = stop
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the download: every wait for missing bytes raises ``error``."""
        self._error = error
        self._wake()

    async def starved(self) -> None:
        """Wait until a task waits for missing bytes."""
        await self._waiting.wait()

    async def arrived(self, start: int, stop: int) -> None:
        self.asked.append((start, stop))
        await trio.lowlevel.checkpoint()
        _check_range(start, stop, self.size)
        while self.available < stop:
            if self._error is not None:
                raise self._error
            self._waiting.set()
            await self._changed.wait()

    async def ahead(self, start: int, stop: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        _check_range(start, stop, self.size)
        if not self.fetches_ahead:
            return None
        self.fetched.append((start, stop))
        return self._content[start:stop]

    def _wake(self) -> None:
        self._changed.set()
        self._changed, self._waiting = trio.Event(), trio.Event()


def _check_range(start: int, stop: int, size: int) -> None:
    """Raise CorruptImageError for a range outside the file, whose bytes can never arrive."""
    if not 0 <= start <= stop <= size:
        raise CorruptImageError(f"the image refers to bytes {start} to {stop} of a file of {size} bytes")
