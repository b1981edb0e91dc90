"""Keeps images out of the host's page cache: writes back early and drops pages after use.

The guests' disks live in the same memory. All calls are cheap, from any thread, and advice: where the kernel does not
take it, nothing is lost.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from provisioner.contracts import MIB

# A part that is written out at a time: large enough for any disk to be at its best.
STEP = 8 * MIB
# What is given back lies this far behind: readers in other threads may be a few steps late, and only pages that have
# reached the disk go.
BEHIND = 64 * MIB

_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = ctypes.CDLL(None).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def write_out(fd: int, start: int, stop: int) -> None:
    """Have the disk begin to write ``[start, stop)``, which otherwise waits for the flush at the end."""
    _sync_file_range(fd, start, stop - start, _SYNC_FILE_RANGE_WRITE)


def drop_pages(fd: int, start: int, stop: int) -> None:
    """Forget what is cached of ``[start, stop)``, as far as it is on disk."""
    if stop > start:
        with suppress(OSError):
            os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)
