"""The converter: opens image and device, picks the reader for the format, and flushes to stable storage."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
import trio

from lvp_convert_native.image_file import ImageFile
from lvp_convert_native.qcow2_clusters import Qcow2Reader
from lvp_convert_native.qcow2_header import read_header
from lvp_convert_native.qcow2_queue import Qcow2Queue
from lvp_convert_native.raw import RawQueue, RawReader
from lvp_convert_native.sink import Sink
from lvp_convert_native.workers import Inflating, Progress, run_threads, write_runs
from provisioner.contracts import MIB, ByteSize, Converter, RateLimiter, run_long, undoing
from provisioner.contracts.errors import ConvertError, CorruptImageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lvp_convert_native.runs import RunQueue, RunReader
    from provisioner.contracts import BackEndContext, Device, ImageView

# Closing a block device waits until its dirty pages are written.
CLOSE_DEADLINE = 30.0
# At a lower rate a single run would take longer than a cancel may.
LEAST_RATE = MIB


class NativeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of ``plugin = "native"``.

    ``threads``: each reads, inflates and writes one run at a time, in 6 MiB of memory. Four threads keep two cores busy
    while others wait for the device (measured: two are a third slower if the device is the limit, six are no
    faster); more help only if there are more cores to inflate with.
    ``rate_limit``: bytes per second written to devices, for all conversions together.
    """

    threads: Annotated[int, msgspec.Meta(ge=1, le=32)] = 4
    rate_limit: ByteSize | None = None

    def __post_init__(self) -> None:
        if self.rate_limit is not None and self.rate_limit < LEAST_RATE:
            raise ValueError("rate_limit must be at least 1MiB")


class NativeConverter(Converter):
    """Writes raw and qcow2 images onto devices, in threads of this process."""

    formats: ClassVar[frozenset[str]] = frozenset({"raw", "qcow2"})
    streams: ClassVar[bool] = True
    checks: ClassVar[bool] = True

    def __init__(self, settings: NativeSettings, context: BackEndContext) -> None:
        del context
        self._threads = settings.threads
        self._inflating = Inflating()
        self._rate_limiter = RateLimiter(settings.rate_limit)

    async def convert(self, view: ImageView, device: Device, report: Callable[[int], None]) -> None:
        """Convert the image, as ``Converter.convert`` says."""
        async with _opened(view, device) as (image, sink):
            if not await self._shared(view, image, sink, report):
                await self._copy(view, image, sink, report)
            await run_long(sink.flush)

    async def _shared(self, view: ImageView, image: ImageFile, sink: Sink, report: Callable[[int], None]) -> bool:
        """Share the blocks of a complete raw image on the same XFS or btrfs; return False if impossible."""
        if view.format != "raw" or not image.complete:
            return False
        if shared := await run_long(sink.clone, image.fd, view.virtual_size):
            await run_long(
                view.check_all, trio.from_thread.check_cancelled
            )  # its bytes have not been read and checked yet
            report(view.virtual_size)
        return shared

    async def _copy(self, view: ImageView, image: ImageFile, sink: Sink, report: Callable[[int], None]) -> None:
        queue, reader = await run_long(_plan, view, image)  # it may wait for tables that have not arrived
        progress = Progress(report)
        await run_threads(
            self._threads,
            lambda: write_runs(image, queue, reader(), self._inflating, sink, self._rate_limiter, progress),
        )


def _plan(view: ImageView, image: ImageFile) -> tuple[RunQueue, Callable[[], RunReader]]:
    """Return the queue of runs and a function that makes a reader for each thread."""
    if view.format == "raw":
        return RawQueue(image, view.virtual_size), lambda: RawReader(image)
    if view.format != "qcow2":
        raise ConvertError(f"the native converter does not read {view.format} images")
    header = read_header(image)
    if header.size != view.virtual_size:
        raise CorruptImageError(
            f"the header declares a disk of {header.size} bytes, but {view.virtual_size} were expected"
        )
    return Qcow2Queue(image, header), lambda: Qcow2Reader(image, header)


@asynccontextmanager
async def _opened(view: ImageView, device: Device) -> AsyncIterator[tuple[ImageFile, Sink]]:
    with ExitStack() as undo:
        image = ImageFile(view)
        undo.callback(image.close)
        sink = await run_long(Sink, device, view.virtual_size)
        try:
            yield image, sink
        finally:
            with undoing(f"close {device.path}", CLOSE_DEADLINE):
                await run_long(sink.close)
