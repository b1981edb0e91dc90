"""The image file as the converter's threads read it: a separate descriptor, and waits for bytes still to arrive."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import ConvertError, CorruptImageError, DamagedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provisioner.contracts import ImageView


class ImageFile:
    """Blocking reads of a view's file, from threads that ``trio.to_thread`` started.

    It has a separate open file description, because the search for holes moves the file offset.
    """

    def __init__(self, view: ImageView) -> None:
        self._view = view
        self.size = view.size
        self.complete = view.available >= view.size
        try:
            self.fd = os.open(f"/proc/self/fd/{view.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConvertError(f"cannot open the image: {error.strerror}") from error

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def wait(self, start: int, stop: int) -> None:
        """Return when ``[start, stop)`` has arrived. Raises the error that ended the download."""
        if not self.has(stop):
            trio.from_thread.run(self._view.arrived, start, stop)

    def has(self, stop: int) -> bool:
        """Return whether everything before ``stop`` has arrived."""
        return self.complete or self._view.available >= stop

    def ahead(self, start: int, length: int) -> bytes | None:
        """Return exactly ``length`` bytes ahead of the download if the view can fetch them, else None."""
        return trio.from_thread.run(self._view.ahead, start, start + length)

    def spent(self, start: int, stop: int) -> None:
        """Tell the view that ``[start, stop)`` will not be read again."""
        self._view.spent(start, stop)

    def read(self, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes: fetched ahead if possible, else after waiting for them."""
        if not self.has(start + length) and (early := self.ahead(start, length)) is not None:
            return early
        data = bytearray(length)
        self.wait(start, start + length)
        self.read_into(memoryview(data), start)
        return bytes(data)

    def read_into(self, into: memoryview, start: int) -> None:
        """Fill ``into`` from ``start``; the bytes must have arrived. Bytes of a complete image are verified."""
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self.fd, [into[done:]], start + done)
            except OSError as error:
                kind = DamagedImageError if error.errno == errno.EIO and self.complete else ConvertError
                raise kind(f"cannot read the image at byte {start + done}: {error.strerror}") from error
            if count == 0:
                raise CorruptImageError(f"the image is truncated: it ends at byte {start + done}")
            done += count
        self._view.check(start, into)

    def check_zeros(self, start: int, stop: int) -> None:
        """Verify a hole that is skipped: it must have been zeros in the published image."""
        if self.complete:
            self._view.check_zeros(start, stop)

    def extents(self, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yield ``(start, stop, is_data)`` up to ``stop``, from the filesystem's map. For complete files only."""
        position = 0
        while position < stop:
            data = min(self._seek(position, os.SEEK_DATA, stop), stop)
            if data > position:
                yield position, data, False
            position = data
            if position < stop:
                hole = min(max(self._seek(position, os.SEEK_HOLE, stop), position + 1), stop)
                yield position, hole, True
                position = hole

    def _seek(self, position: int, whence: int, otherwise: int) -> int:
        try:
            return os.lseek(self.fd, position, whence)
        except OSError as error:
            nothing_follows = error.errno == errno.ENXIO  # otherwise the filesystem has no map, and everything is data
            return otherwise if nothing_follows or whence == os.SEEK_HOLE else position
