"""Sets this process's I/O class: its priority relative to the guests' disk requests.

Set once, before any thread starts: threads and child processes inherit it. The schedulers mq-deadline and bfq apply it
to reads, direct writes and flushes; "none", common for NVMe disks, ignores it.
"""

from __future__ import annotations

import ctypes
import os
import platform

import structlog

log = structlog.get_logger(__name__)

# linux/ioprio.h
_CLASS_SHIFT = 13
_BEST_EFFORT, _IDLE = 2, 3
_WHO_PROCESS = 1
_SYSCALLS = {"x86_64": 251, "aarch64": 30, "riscv64": 30}


def value_of(io_class: str) -> int | None:
    """Return the kernel's number for ``idle`` or ``best-effort:0`` to ``best-effort:7``; None for ``none``."""
    if io_class == "none":
        return None
    name, _, level = io_class.partition(":")
    return _IDLE << _CLASS_SHIFT if name == "idle" else _BEST_EFFORT << _CLASS_SHIFT | int(level)


def apply(io_class: str) -> None:
    """Set the I/O class of the calling thread and all it starts. If that fails, log a warning and continue."""
    value, number = value_of(io_class), _SYSCALLS.get(platform.machine())
    if value is None:
        return
    if number is None:
        log.warning("the I/O class cannot be set on this architecture", machine=platform.machine())
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _WHO_PROCESS, 0, value) != 0:
        log.warning("the I/O class cannot be set", io_class=io_class, reason=os.strerror(ctypes.get_errno()))
