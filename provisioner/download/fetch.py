"""Fetches an image into a file: retries failed attempts and resumes broken downloads.

``parallel_ranges`` takes over if one connection is slow.
"""

from __future__ import annotations

import math
import os
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from provisioner.contracts import pwrite_all
from provisioner.contracts.errors import RemoteChangedError, RemoteUnavailableError, SourceError
from provisioner.contracts.source import closing_chunks
from provisioner.download.parallel_ranges import ParallelRanges, unless_slow
from provisioner.download.retries import pause_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.contracts import ImageSource, ImageStream, RemoteImage
    from provisioner.download.growing_file import GrowingFile

log = structlog.get_logger(__name__)

# Seconds for which a server that stopped answering is asked again in any case: a restart of the web server or a reboot
# of its host is over by then.
OUTAGE = 60.0
# Bytes that must arrive to reset the failure count. Otherwise a server that sends a few bytes per attempt would never
# exhaust its attempts.
MIN_PROGRESS = 64 * 1024


async def fetch(
    source: ImageSource,
    image: RemoteImage,
    growing_file: GrowingFile,
    attempts: int,
    received: Callable[[int], None],
    ranges: int = 1,
) -> None:
    """Download ``image`` into ``growing_file``; after a broken connection, resume where it ended.

    Give up after ``attempts`` failures with less than MIN_PROGRESS received in total, but not within the first OUTAGE
    seconds in which the server does not answer at all, unless there is only one attempt. If the server can only start
    over, each attempt repeats the bytes of the earlier ones: then all failures count. If one connection is slow, up to
    ``ranges`` are used. ``received`` is called with byte counts from any thread. Without a version, the digest decides
    whether the parts fit. Raises SourceError; RemoteChangedError if the server has a different image.
    """
    if image.size is not None and growing_file.available == image.size:  # an earlier run of the daemon completed it
        growing_file.mixed = True
        growing_file.finish()
        return
    failures, counted_from, down_since, waited = 0, growing_file.available, math.inf, 0.0
    resumes = image.accepts_ranges
    may_split = ranges > 1 and resumes and image.size is not None
    while True:
        answered = False
        try:
            # Without a version, what is in the file may come from another one: the digest decides in the end.
            growing_file.mixed |= growing_file.available > 0 and image.version is None
            start = growing_file.available if image.accepts_ranges else 0
            async with source.open(image.pinned or image.url, start, None, image.version) as stream:
                answered, down_since = True, math.inf
                resumes = resumes and stream.start == start
                growing_file.content_encoding = stream.content_encoding
                may_split = may_split and resumes and stream.content_encoding is None
                receive = partial(_receive, stream, image, growing_file, received)
                if not may_split:
                    await receive()
                    return
                assert image.size is not None
                rate = await unless_slow(growing_file, image.size, receive)
            if rate is None:
                return
            may_split = False
            growing_file.mixed |= image.version is None
            await ParallelRanges(source, image, growing_file, received, most=ranges, rate=rate).run()
            if growing_file.available == image.size:
                growing_file.finish()
                return
        except SourceError as error:
            failures += 1
            if resumes and growing_file.available >= counted_from + MIN_PROGRESS:
                failures, counted_from = 1, growing_file.available
            down_since = min(down_since, trio.current_time())
            is_down = attempts > 1 and not answered and trio.current_time() < down_since + OUTAGE
            pause = pause_for(error, failures, waited)
            if pause is None or (failures >= attempts and not is_down):
                if answered and not resumes and isinstance(error, RemoteUnavailableError):
                    raise _cut_short(error, image, growing_file.available, failures) from error
                raise
            waited += pause
            growing_file.waiting_for = error.message
            log.warning(
                "download interrupted", reason=error.message, at_byte=growing_file.available, pause=round(pause, 2)
            )
            await trio.sleep(pause)


def _cut_short(error: SourceError, image: RemoteImage, available: int, failures: int) -> RemoteUnavailableError:
    """Return the error of a server that breaks off every time and cannot go on where it did."""
    whole = "" if image.size is None else f" of {image.size}"
    return RemoteUnavailableError(
        f"{error.message}; the server can only start over (it has no ranges), and {failures} attempts got no further "
        f"than byte {available}{whole}"
    )


async def _receive(
    stream: ImageStream, image: RemoteImage, growing_file: GrowingFile, received: Callable[[int], None]
) -> None:
    """Save the rest of the image from ``stream``."""
    if stream.start > growing_file.available:
        raise RemoteChangedError("the server sent a different part of the image than requested")
    mark = stream.start

    def report(end: int) -> None:
        nonlocal mark
        if image.size is not None and end > image.size:
            raise RemoteChangedError(f"the server announced {image.size} bytes but sends more")
        growing_file.waiting_for = None
        received(end - mark)
        mark = end
        growing_file.advance(end)

    # Never rewrite bytes that were already hashed: the digest would no longer describe the file.
    save = stream.save if stream.start == growing_file.available else partial(_replay, stream, growing_file)
    end = await save(growing_file.fd, report)
    promised = growing_file.available if image.size is None else image.size
    if end != promised:  # without an announced size: shorter than what already arrived
        raise RemoteChangedError(f"the server announced {promised} bytes but sent {end}")
    growing_file.finish()


async def _replay(stream: ImageStream, growing_file: GrowingFile, fd: int, report: Callable[[int], None]) -> int:
    """Save a stream that restarts before the end of the file: compare the known bytes, write the rest."""
    offset = stream.start
    async with closing_chunks(stream) as chunks:
        async for chunk in chunks:
            await trio.to_thread.run_sync(_compare_and_write, fd, chunk, offset, growing_file.available)
            offset += len(chunk)
            report(offset)
    return offset


def _compare_and_write(fd: int, chunk: bytes, offset: int, available: int) -> None:
    known = max(0, min(len(chunk), available - offset))
    if known and os.pread(fd, known, offset) != chunk[:known]:
        raise RemoteChangedError("the image changed on the server during the download")
    pwrite_all(fd, memoryview(chunk)[known:], offset + known)
