"""Fake sources, converters, guards and observers. The fake targets are in ``fake_target``."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import trio

from provisioner.contracts import blockdev
from provisioner.contracts.converter import Converter, ImageView
from provisioner.contracts.errors import CorruptImageError, ImageTooLargeError, RemoteChangedError, RemoteNotFoundError
from provisioner.contracts.guard import Guard, Observer
from provisioner.contracts.source import ImageSource, ImageStream, pwrite_all
from provisioner.contracts.testing.steps import Steps
from provisioner.contracts.types import Device, JobEvent, RemoteImage, Volume, VolumeUser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from provisioner.contracts.urls import ImageUrl


@dataclass(frozen=True, slots=True)
class FakeImage:
    """An image on a fake server. ``size`` is what the server reports: None if it does not, -1 for the true size."""

    data: bytes
    version: str | None = "1"
    size: int | None = -1  # -1: the true size
    accepts_ranges: bool = True


class FakeSource(ImageSource):
    """An image source that serves images from memory, by url.

    ``opens`` has (url, start, stop) of each stream, ``bytes_given`` the number of bytes of all streams, ``open_now``
    the number of open streams. At the offset ``at_byte`` a stream hangs (``hang_at="byte"``), fails
    (``fail_at={"byte": error}``) or the image changes to ``change_to``.
    """

    STEPS = ("stat", "open", "read", "byte", "close")

    def __init__(
        self,
        images: Mapping[str, bytes | FakeImage],
        *,
        chunk_size: int = 64 * 1024,
        at_byte: int | None = None,
        change_to: FakeImage | None = None,
        hang_at: str | None = None,
        fail_at: Mapping[str, Exception] | None = None,
    ) -> None:
        self.images = {
            url: image if isinstance(image, FakeImage) else FakeImage(image) for url, image in images.items()
        }
        self.chunk_size = chunk_size
        self.at_byte = at_byte
        self.change_to = change_to
        self.steps = Steps(self.STEPS, hang_at, fail_at)
        self.opens: list[tuple[str, int, int | None]] = []
        self.bytes_given = 0
        self.open_now = 0
        self.closed = False

    def owns(self, url: ImageUrl) -> bool:
        """Return whether ``url`` has the scheme and host of one of the images."""
        return any(url.text.split("/")[:3] == known.split("/")[:3] for known in self.images)

    async def stat(self, url: ImageUrl) -> RemoteImage:
        await self.steps.at("stat")
        image = self._image(url.text)
        size = len(image.data) if image.size == -1 else image.size
        return RemoteImage(url, size, image.version, image.accepts_ranges)

    @asynccontextmanager
    async def open(
        self, url: ImageUrl, start: int = 0, stop: int | None = None, version: str | None = None
    ) -> AsyncIterator[ImageStream]:
        self.opens.append((url.text, start, stop))
        await self.steps.at("open")
        image = self._image(url.text)
        if version is not None and image.version != version:
            raise _changed(url.text)
        if not image.accepts_ranges:
            start, stop = 0, None
        self.open_now += 1
        try:
            yield _FakeStream(self, url.text, image, start, len(image.data) if stop is None else stop)
            await self.steps.at("close")
        finally:
            self.open_now -= 1

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()

    def _image(self, url: str) -> FakeImage:
        try:
            return self.images[url]
        except KeyError:
            raise RemoteNotFoundError(f"{url} does not exist") from None

    async def pass_by(self, url: str, start: int, stop: int) -> None:
        """Run the step ``byte`` if ``[start, stop)`` of a stream contains ``at_byte``."""
        if self.at_byte is not None and start <= self.at_byte < stop:
            if self.change_to is not None:
                self.images[url] = self.change_to
            await self.steps.at("byte")


class _FakeStream(ImageStream):
    """A stream that is an iterator, not a generator, so nothing is left to close if its reader is cancelled."""

    def __init__(self, source: FakeSource, url: str, image: FakeImage, start: int, stop: int) -> None:
        self.start = start
        self.strong_version = image.version if (image.version or "").startswith('"') else None
        self._source, self._url, self._image = source, url, image
        self._offset, self._stop = start, min(stop, len(image.data))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._offset >= self._stop:
            raise StopAsyncIteration
        await self._source.steps.at("read")
        start = self._offset
        self._offset = min(self._stop, start + self._source.chunk_size)
        await self._source.pass_by(self._url, start, self._offset)
        if self._source.images.get(self._url) is not self._image:
            raise _changed(self._url)
        self._source.bytes_given += self._offset - start
        return self._image.data[start : self._offset]


def _changed(url: str) -> RemoteChangedError:
    return RemoteChangedError(f"{url} changed on the server since the download began")


class FakeConverter(Converter):
    """A converter that treats every image as raw bytes and copies them block by block as they arrive.

    ``converted`` lists the finished devices. Zeros past the file's end are written unless the device reads as zeros.
    """

    STEPS = ("start", "block", "flush")
    formats: ClassVar[frozenset[str]] = frozenset({"raw", "qcow2"})

    def __init__(
        self,
        *,
        streams: bool = True,
        block_size: int = 256 * 1024,
        hang_at: str | None = None,
        fail_at: Mapping[str, Exception] | None = None,
    ) -> None:
        self.streams = streams  # type: ignore[misc]  # set per instance here
        self.block_size = block_size
        self.steps = Steps(self.STEPS, hang_at, fail_at)
        self.converted: list[Device] = []
        self.closed = False

    async def convert(self, view: ImageView, device: Device, report: Callable[[int], None]) -> None:
        await self.steps.at("start")
        if view.virtual_size > device.size_bytes:
            raise ImageTooLargeError(f"the image has {view.virtual_size} bytes, the device only {device.size_bytes}")
        if view.format == "raw" and view.size < view.virtual_size:
            raise CorruptImageError("the image ends too early")
        fd = os.open(device.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            end = min(view.size, view.virtual_size)
            for start in range(0, end, self.block_size):
                stop = min(end, start + self.block_size)
                await view.arrived(start, stop)
                await self.steps.at("block")
                data = os.pread(view.fd, stop - start, start)
                if len(data) < stop - start:
                    raise CorruptImageError("the image ends too early")
                pwrite_all(fd, data, start)
                report(stop)
            if not device.reads_zero:
                blockdev.zero_range(fd, end, view.virtual_size)
            await self.steps.at("flush")
            os.fsync(fd)
        finally:
            os.close(fd)
        report(view.virtual_size)
        self.converted.append(device)

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


class FakeGuard(Guard):
    """A guard that reports the users in ``who_uses``, by volume name."""

    STEPS = ("users",)

    def __init__(
        self,
        who_uses: Mapping[str, Sequence[VolumeUser]] | None = None,
        *,
        hang_at: str | None = None,
        fail_at: Mapping[str, Exception] | None = None,
    ) -> None:
        self.who_uses = dict(who_uses or {})
        self.steps = Steps(self.STEPS, hang_at, fail_at)
        self.asked: list[Volume] = []

    async def users(self, volume: Volume) -> Sequence[VolumeUser]:
        self.asked.append(volume)
        await self.steps.at("users")
        return self.who_uses.get(volume.name, ())


class FakeObserver(Observer):
    """An observer that records every event in ``events``."""

    STEPS = ("job_changed",)

    def __init__(self, *, hang_at: str | None = None, fail_at: Mapping[str, Exception] | None = None) -> None:
        self.steps = Steps(self.STEPS, hang_at, fail_at)
        self.events: list[JobEvent] = []

    async def job_changed(self, event: JobEvent) -> None:
        self.events.append(event)
        await self.steps.at("job_changed")
