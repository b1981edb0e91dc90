"""Opens regular files beneath a folder, also if symbolic links and renames are made there meanwhile.

The kernel resolves the path (``openat2``), so there is nothing between a check and its use. Blocking: a network file
system may hang in every call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys

# All architectures have the same number.
_SYS_OPENAT2 = 437
_RESOLVE = 0x02 | 0x08  # RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH
# A rename elsewhere can make the kernel unsure whether ".." stays beneath the folder (EAGAIN).
_ATTEMPTS = 64
# Never wait for the writer of a pipe, nor for the holder of a lease.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# From linux/magic.h: file systems whose files the kernel makes up. Bytes of a process or a device are no image.
_MADE_UP = {
    0x9FA0,  # proc
    0x62656572,  # sysfs
    0x64626720,  # debugfs
    0x74726163,  # tracefs
    0x73636673,  # securityfs
    0x27E0EB,  # cgroup
    0x63677270,  # cgroup2
    0xCAFE4A11,  # bpf
    0xDE5E81E4,  # efivarfs
    0x62656570,  # configfs
    0xF97CFF8C,  # selinux
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class NotRegularError(OSError):
    """What the path names is not a regular file; ``strerror`` says what it is."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_regular(folder: str, path: bytes) -> tuple[int, os.stat_result]:
    """Return a descriptor to read the regular file ``path`` beneath ``folder``, and its status.

    ``path`` is relative. Raises OSError: EXDEV if a link leads out of the folder, ELOOP for a link of the kernel's
    (``/proc/PID/fd/N``), NotRegularError for anything but a file of bytes on a disk or server.
    """
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # First without opening it: opening a device can have effects.
        place = _openat2(top, path, os.O_PATH | os.O_CLOEXEC)
        try:
            seen = os.fstat(place)
            _check_kind(place, seen)
        finally:
            os.close(place)
        fd = _openat2(top, path, _READ)
    finally:
        os.close(top)
    try:
        status = os.fstat(fd)
        _check_kind(fd, status)
    except BaseException:
        os.close(fd)
        raise
    return fd, status


def names_in(folder: str, path: bytes) -> list[bytes]:
    """Return the names of what is in the folder ``path`` beneath ``folder``. Raises OSError, like ``open_regular``."""
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _openat2(top, path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(top)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]  # noqa: PTH208 - a descriptor, not a path
    finally:
        os.close(fd)


def _openat2(top: int, path: bytes, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE)
    for _ in range(_ATTEMPTS):
        fd = int(
            _libc.syscall(
                ctypes.c_long(_SYS_OPENAT2),
                ctypes.c_long(top),
                ctypes.c_char_p(path),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
        )
        if fd >= 0:
            return fd
        if (number := ctypes.get_errno()) not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(number, os.strerror(number))


def _check_kind(fd: int, status: os.stat_result) -> None:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    for is_kind, name in kinds:
        if is_kind(status.st_mode):
            raise NotRegularError(errno.EINVAL, f"it is {name}, not a file")
    if not stat.S_ISREG(status.st_mode) or _file_system(fd) in _MADE_UP:
        raise NotRegularError(errno.EINVAL, "it is not a file on a disk")


def _file_system(fd: int) -> int:
    """Return the magic number of the file system: the first word of ``struct statfs``."""
    buffer = ctypes.create_string_buffer(512)
    if _libc.fstatfs(fd, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF
