"""The image's file, as the converter's threads read it: own descriptor, waits for bytes that are still coming."""

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

    It has an open file description of its own: looking for holes moves an offset, and the view's is not ours.
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
        """Return when ``[start, stop)`` has arrived; costs nothing when it has. Raises what ended the download."""
        if not self.has(stop):
            trio.from_thread.run(self._view.arrived, start, stop)

    def has(self, stop: int) -> bool:
        """Whether everything before ``stop`` has arrived."""
        return self.complete or self._view.available >= stop

    def ahead(self, start: int, length: int) -> bytes | None:
        """Exactly ``length`` bytes before their turn, where they can be had so."""
        return trio.from_thread.run(self._view.ahead, start, start + length)

    def spent(self, start: int, stop: int) -> None:
        """Nobody reads ``[start, stop)`` again."""
        self._view.spent(start, stop)

    def read(self, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes: fetched ahead where they can be, else waited for."""
        if not self.has(start + length) and (early := self.ahead(start, length)) is not None:
            return early
        data = bytearray(length)
        self.wait(start, start + length)
        self.read_into(memoryview(data), start)
        return bytes(data)

    def read_into(self, into: memoryview, start: int) -> None:
        """Fill ``into`` from ``start``; the bytes must have arrived. Those of a whole image are checked."""
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self.fd, [into[done:]], start + done)
            except OSError as error:
                kind = DamagedImageError if error.errno == errno.EIO and self.complete else ConvertError
                raise kind(f"cannot read the image at byte {start + done}: {error.strerror}") from error
            if count == 0:
                raise CorruptImageError(f"the image ends too early: nothing at byte {start + done}")
            done += count
        self._view.check(start, into)

    def check_zeros(self, start: int, stop: int) -> None:
        """Have a hole that is not read compared with what should be there."""
        if self.complete:
            self._view.check_zeros(start, stop)

    def extents(self, stop: int) -> Iterator[tuple[int, int, bool]]:
        """``(start, stop, is_data)`` in order, up to ``stop``, from the filesystem's own map. Complete files only."""
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
            nothing_follows = error.errno == errno.ENXIO  # else the filesystem keeps no map: all is data
            return otherwise if nothing_follows or whence == os.SEEK_HOLE else position
