"""Writes the device: direct I/O if available, zeroing by the device, one flush at the end."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lvp_convert_native.runs import PAGE
from provisioner.contracts import blockdev, pwrite_all
from provisioner.contracts.errors import ConvertError, ImageTooLargeError, NoSpaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lvp_convert_native.buffers import Buffer
    from provisioner.contracts import Device

# Bytes per zeroing request: some devices zero at only 100 MB/s, and a cancel must take effect within a second.
ZERO_STEP = 64 * 1024**2
# Shorter zeros between data are written as data: a separate request costs more.
ZERO_MIN = 1024**2

# linux/fs.h
FICLONE = 0x40049409

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpaceError(f"no space left while writing {path}") from error
        raise ConvertError(f"cannot write {path}: {error.strerror}") from error


class Sink:
    """Writes runs to a device. Threads may write at the same time if their pages differ. Every method blocks."""

    def __init__(self, device: Device, size: int) -> None:
        self._path = device.path
        self._reads_zero = device.reads_zero
        with _writing(device.path):
            self._fd = os.open(device.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._check_room(size)
            self._direct = self._open_direct()
        except BaseException:
            os.close(self._fd)
            raise

    def _check_room(self, size: int) -> None:
        with _writing(self._path):
            room = blockdev.device_size(self._fd)
        if room < size:
            raise ImageTooLargeError(f"the image's disk has {size} bytes, but {self._path} has only {room}")

    def _open_direct(self) -> int | None:
        with suppress(OSError):  # EINVAL: the filesystem has no direct I/O
            return os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
        return None

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)

    def write(self, buffer: Buffer, length: int, at: int) -> None:
        """Write the first ``length`` bytes of ``buffer`` at ``at``; skip or zero ranges of zeros."""
        with _writing(self._path):
            for start, stop, is_data in buffer.extents(length):
                if is_data or not (self._reads_zero or stop - start >= ZERO_MIN):
                    self._put(buffer.view[start:stop], at + start)
                elif not self._reads_zero:
                    self._zero(at + start, at + stop)

    def _put(self, data: memoryview, at: int) -> None:
        whole = 0 if self._direct is None else len(data) // PAGE * PAGE
        if whole and self._direct is not None:
            pwrite_all(self._direct, data[:whole], at)
        if whole < len(data):  # the image ends inside a page
            pwrite_all(self._fd, data[whole:], at + whole)

    def zero(self, start: int, stop: int, check: Callable[[], None]) -> None:
        """Make ``[start, stop)`` read as zero; ``check`` may raise to stop."""
        if self._reads_zero:
            return
        with _writing(self._path):
            while start < stop:
                check()
                step = min(start + ZERO_STEP, stop)
                self._zero(start, step)
                start = step

    def _zero(self, start: int, stop: int) -> None:
        """Zero the range in whole blocks; zero the partial block at the image's end separately."""
        whole = max(stop // PAGE * PAGE, start)
        for begin, end in ((start, whole), (whole, stop)):
            if begin < end:
                blockdev.zero_range(self._fd, begin, end)

    def clone(self, source: int, size: int) -> bool:
        """Share ``size`` bytes of the file ``source`` instead of copying them; return False if that is not possible."""
        if blockdev.is_block_device(self._fd) or os.fstat(source).st_size != size:
            return False
        with suppress(OSError):  # a different filesystem, or one without reflinks
            fcntl.ioctl(self._fd, FICLONE, source)
            return True
        return False

    def flush(self) -> None:
        """Return when everything is on stable storage."""
        with _writing(self._path):
            os.fsync(self._fd)
