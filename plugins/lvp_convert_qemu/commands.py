"""Builds qemu-img's command lines and parses its progress output. Pure: runs nothing.

The source is described as JSON and the target as options. Both name a driver for every layer, so that nothing is
probed, and the /proc path of a descriptor, so that the name of an image or volume is never parsed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from provisioner.contracts import sandboxed as _sandboxed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lvp_convert_qemu.settings import QemuSettings

# Image format -> QEMU's driver, with the options that restrict it to this one file. The core already rejects images
# that refer to other files; if one gets through, its backing file is still not opened.
_DRIVERS: Mapping[str, Mapping[str, object]] = {
    "raw": {"driver": "raw"},
    "qcow2": {"driver": "qcow2", "backing": None},
    "vmdk": {"driver": "vmdk", "backing": None},
    # The size computed from the geometry differs from the size that the image declares.
    "vpc": {"driver": "vpc", "force_size_calc": "current_size"},
    "vhdx": {"driver": "vhdx"},
    "vdi": {"driver": "vdi"},
}
FORMATS = frozenset(_DRIVERS)

_PROGRESS = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
# The longest progress mark; this much is kept in case one is incomplete.
_MARK_LENGTH = 32


def source(fd: int, image_format: str, size: int | None = None) -> str:
    """Return qemu-img's file name argument for the image behind ``fd``.

    ``size``: how many bytes of a raw file are read, if not all.
    """
    file = {"driver": "file", "filename": f"/proc/self/fd/{fd}", "locking": "off"}
    limit = {} if size is None else {"size": size}
    return "json:" + json.dumps({**_DRIVERS[image_format], **limit, "file": file})


def convert(
    settings: QemuSettings,
    fd: int,
    image_format: str,
    device_fd: int,
    *,
    is_block: bool,
    reads_zero: bool,
    direct: bool,
    size: int | None = None,
) -> list[str]:
    """Return the command that writes the image behind ``fd`` to the device behind ``device_fd``.

    ``-n`` uses the existing target, ``-W`` with several coroutines writes out of order (three times faster from
    compressed images), ``-t none`` bypasses the page cache. The source is read through the cache: it has just been
    written, and reading it uncached is two to three times slower.
    """
    driver = "host_device" if is_block else "file"
    return [
        *sandboxed(settings, [fd], [device_fd]), "convert", "-p", "-n", "-W", "-m", str(settings.coroutines),
        "-t", "none" if direct else "writeback", "-T", "writeback",
        *(["--target-is-zero"] if reads_zero else []),
        *(["-r", str(int(settings.rate_limit))] if settings.rate_limit else []),
        "--target-image-opts", source(fd, image_format, size),
        f"driver=raw,file.driver={driver},file.filename=/proc/self/fd/{device_fd}",
    ]  # fmt: skip


def info(settings: QemuSettings, fd: int, image_format: str) -> list[str]:
    """Return the command that prints QEMU's information about the image behind ``fd`` as JSON."""
    return [*sandboxed(settings, [fd]), "info", "--output=json", source(fd, image_format)]


def check(settings: QemuSettings, fd: int, image_format: str) -> list[str]:
    """Return the command that checks the tables of the image behind ``fd``; the data is not read."""
    return [*sandboxed(settings, [fd]), "check", source(fd, image_format)]


def probe(settings: QemuSettings) -> list[str]:
    """Return the command that prints a line ``name: reason`` for each layer of the sandbox that this host lacks."""
    return sandboxed(settings, [], mode="probe")


def sandboxed(
    settings: QemuSettings, readable: Sequence[int], writable: Sequence[int] = (), *, mode: str | None = None
) -> list[str]:
    """Return the beginning of a command that confines qemu-img to these descriptors."""
    mode = mode or settings.sandbox
    return _sandboxed(settings.path, readable, writable, mode=mode, memory=settings.memory_limit)


class Progress:
    """Reads progress from the output of qemu-img, split anywhere. The progress never decreases."""

    def __init__(self, total: int, report: Callable[[int], None]) -> None:
        self._total = total
        self._report = report
        self._done = -1
        self._rest = b""

    def feed(self, chunk: bytes) -> bool:
        """Parse the next chunk; return whether there was progress."""
        text = self._rest + chunk
        self._rest = text[-_MARK_LENGTH:]
        marks = _PROGRESS.findall(text)
        return bool(marks) and self.advance(int(float(marks[-1]) / 100 * self._total))

    def advance(self, done: int) -> bool:
        """Report ``done`` bytes if that is more than before."""
        if done <= self._done:
            return False
        self._done = min(done, self._total)
        self._report(self._done)
        return True
