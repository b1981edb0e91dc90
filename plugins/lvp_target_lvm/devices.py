"""Waits for, inspects and wipes the device nodes of volumes. Calls no tool."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from provisioner.contracts import blockdev
from provisioner.contracts.errors import TargetError, TargetUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# udev creates the node shortly after LVM returns; this takes seconds on a host that boots many guests.
NODE_TIMEOUT = 30.0
_POLL = 0.05


def path_of(group: str, volume: str) -> str:
    """Return ``/dev/VG/LV``; names below /dev/mapper are not a stable interface."""
    return f"/dev/{group}/{volume}"


async def appeared(path: str, number: int | None = None) -> int:
    """Wait for the node ``path`` (of the device ``number``, if given) and return its device number.

    Raises TargetUnavailableError if the node does not appear in time.
    """
    with trio.move_on_after(NODE_TIMEOUT):
        while True:
            found = await trio.to_thread.run_sync(_number_of, path)
            if found is not None and number in {None, found}:
                return found
            await trio.sleep(_POLL)
    raise TargetUnavailableError(
        f"LVM reports {path}, but its device did not appear within {NODE_TIMEOUT:g} s; is udev running?"
    )


async def size_of(path: str) -> int:
    """Return the device's size in bytes, as the kernel reports it."""
    return await trio.to_thread.run_sync(_size_of, path)


async def sectors_written(path: str) -> int | None:
    """Return the number of sectors written since the device was activated; None if unknown."""
    return await trio.to_thread.run_sync(_sectors_written, path)


async def is_there(major: int, minor: int, mapper_name: str) -> bool:
    """Return whether the device exists under that name; its number may have been reused by another volume."""
    return await trio.to_thread.run_sync(_mapper_name_of, major, minor) == mapper_name


async def zero(path: str) -> None:
    """Zero the whole device, with the device's own zeroing command if it has one."""
    await _over(path, blockdev.zero_range)


async def discard(path: str) -> None:
    """Discard the whole device. Leave it unchanged if it does not support discards."""
    await _over(path, blockdev.discard_range)


async def is_blank(path: str) -> bool:
    """Return whether the whole device reads as zeros."""

    def run() -> bool:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return blockdev.is_blank(fd, trio.from_thread.check_cancelled)
        finally:
            os.close(fd)

    try:
        return await trio.to_thread.run_sync(run)
    except OSError as error:
        raise TargetUnavailableError(f"{path} cannot be read: {error.strerror}") from error


async def _over(path: str, work: Callable[[int, int, int, Callable[[], None]], object]) -> None:
    def run() -> None:
        with _opened(path) as fd:
            work(fd, 0, blockdev.device_size(fd), trio.from_thread.check_cancelled)
            os.fsync(fd)

    try:
        await trio.to_thread.run_sync(run)
    except OSError as error:
        raise TargetError(f"wiping {path} failed: {error.strerror}") from error


@contextmanager
def _opened(path: str) -> Iterator[int]:
    # O_EXCL: the kernel refuses a device that is mounted or used by device-mapper.
    fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _size_of(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return blockdev.device_size(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise TargetUnavailableError(f"{path} cannot be opened: {error.strerror}") from error


def _number_of(path: str) -> int | None:
    try:
        return Path(path).stat().st_rdev
    except OSError:
        return None


def _mapper_name_of(major: int, minor: int) -> str:
    try:
        return Path(f"/sys/dev/block/{major}:{minor}/dm/name").read_text().strip()
    except OSError:
        return ""


def _sectors_written(path: str) -> int | None:
    number = _number_of(path)
    if number is None:
        return None
    try:
        # Documentation/admin-guide/iostats: field 7 is sectors written, field 14 is sectors discarded. Discards
        # destroy content too.
        numbers = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text().split()
        return int(numbers[6]) + (int(numbers[13]) if len(numbers) > 13 else 0)
    except (OSError, IndexError, ValueError):
        return None
