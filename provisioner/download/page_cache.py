"""Keeps images out of the host's page cache, which the guests' disks need: starts writeback early, drops used pages.

All calls are cheap, thread-safe and advisory: the kernel may ignore them without harm.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from provisioner.contracts import MIB

# Bytes to write back at a time: large enough for the full speed of any disk.
STEP = 8 * MIB
# Distance at which pages are dropped: readers in other threads may lag a few steps behind, and only pages that were
# written back can be dropped.
BEHIND = 64 * MIB

_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = ctypes.CDLL(None).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def write_out(fd: int, start: int, stop: int) -> None:
    """Start writeback of ``[start, stop)``, which otherwise waits for the fsync at the end."""
    _sync_file_range(fd, start, stop - start, _SYNC_FILE_RANGE_WRITE)


def drop_pages(fd: int, start: int, stop: int) -> None:
    """Drop the pages of ``[start, stop)`` that have been written back."""
    if stop > start:
        with suppress(OSError):
            os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)
