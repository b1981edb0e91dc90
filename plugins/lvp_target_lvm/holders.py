"""Finds what has a device open. Best effort; reads /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import VolumeInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_target_lvm.lvm import Lvm
    from lvp_target_lvm.report import Inventory, Lv

# Name at most this many holders, to keep the message short.
_MOST = 3
# After a change udev opens the device for some tenths of a second, and may have closed it before /proc is read.
_REREADS, _REREAD_DELAY = 5, 0.2


async def inventory_once_closed(lvm: Lvm, volume: str, inventory: Inventory | None = None) -> Inventory:
    """Return the inventory; while ``volume`` is open without a holder that can be named, read it again for a second."""
    inventory = inventory or await lvm.inventory()
    for _ in range(_REREADS):
        lv = inventory.volumes.get(volume)
        if lv is None or not lv.open or await holders_of(lv.major, lv.minor):
            break
        await trio.sleep(_REREAD_DELAY)
        inventory = await lvm.inventory()
    return inventory


async def in_use(sentence: str, lv: Lv) -> VolumeInUseError:
    """Return a VolumeInUseError for ``lv`` that names its holders if any are found."""
    holders = await holders_of(lv.major, lv.minor)
    return VolumeInUseError(f"{sentence} ({holders})" if holders else sentence)


async def holders_of(major: int, minor: int) -> str:
    """Return the holders, as ``mounted on /mnt, process qemu-system-x86 (4711)``; empty if none is found."""
    if major < 0:
        return ""
    found = await trio.to_thread.run_sync(lambda: list(_take(_all(major, minor))), abandon_on_cancel=True)
    return ", ".join(found)


def _all(major: int, minor: int) -> Iterator[str]:
    yield from _mounts(Path("/proc/self/mountinfo"), f"{major}:{minor}")
    yield from _mapped(Path(f"/sys/dev/block/{major}:{minor}/holders"))
    yield from _processes(Path("/proc"), os.makedev(major, minor))


def _take(sentences: Iterator[str]) -> Iterator[str]:
    for _, sentence in zip(range(_MOST), sentences, strict=False):
        yield sentence


def _mounts(table: Path, number: str) -> Iterator[str]:
    for line in _text(table).splitlines():
        fields = line.split()
        if len(fields) > 4 and fields[2] == number:
            yield f"mounted on {fields[4]}"


def _mapped(folder: Path) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - only the names are needed
    except OSError:
        return
    for name in names:
        yield f"under the device {_text(folder / name / 'dm/name').strip() or name}"


def _processes(proc: Path, device: int) -> Iterator[str]:
    for process in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if any(_is_device(link, device) for link in _links(process / "fd")):
            yield f"process {_text(process / 'comm').strip()} ({process.name})"


def _links(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_device(link: Path, device: int) -> bool:
    try:
        # Check the link first: most are sockets and files, and stat may hang on a file of a dead server.
        return os.readlink(link).startswith("/dev/") and link.stat().st_rdev == device  # noqa: PTH115
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
