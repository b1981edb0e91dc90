"""Runs: the unit of work between a format's map of an image and the threads that write it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from array import array

RUN_BYTES = 2 * 1024**2
"""A run of data is at most this long and never crosses a multiple of it: long enough that the calls cost nothing
beside the bytes, short enough for the processor's cache and for a cancel to be heard at once."""

PAGE = 4096
"""Runs begin and end on pages of the disk (but for the image's own end): direct I/O wants it on devices with
blocks of 4 KiB, and two threads never touch the same page."""


@dataclass(frozen=True, slots=True)
class Run:
    """The bytes ``[guest, guest + length)`` of the disk inside the image.

    All zeros if ``host`` and ``entries`` are None. Otherwise either ``host`` is the offset of the bytes in the
    file, or ``entries`` are the L2 entries of their clusters. ``[low, need)`` of the file must have arrived
    before the run can be read.
    """

    guest: int
    length: int
    host: int | None = None
    entries: array[int] | None = None
    low: int = 0
    need: int = 0

    @property
    def is_zero(self) -> bool:
        """Return whether the run is all zeros, so that nothing is read."""
        return self.host is None and self.entries is None


class RunQueue(Protocol):
    """Hands out each run of an image once, to any number of threads."""

    def take(self) -> Run | None:
        """Return the next run, or None at the end. May block until a table of the image has arrived."""


class RunReader(Protocol):
    """Reads runs for one thread."""

    def read(self, run: Run, into: memoryview) -> None:
        """Fill ``into`` (as long as the run) with its bytes. Raises CorruptImageError or ConvertError."""
