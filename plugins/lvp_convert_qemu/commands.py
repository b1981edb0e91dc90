"""Builds qemu-img's command lines and parses its progress output. Pure: runs nothing.

The source is described as JSON and the target as options: both name a driver for every layer, so that nothing
is probed, and a descriptor's path below /proc, so that no image's or volume's name is ever parsed.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lvp_convert_qemu.settings import QemuSettings

# What the image format is called by us: QEMU's driver, and the options that keep it to the one file. The core
# refuses images that name other files; should one come through, its backing file is not opened.
_DRIVERS: Mapping[str, Mapping[str, object]] = {
    "raw": {"driver": "raw"},
    "qcow2": {"driver": "qcow2", "backing": None},
    "vmdk": {"driver": "vmdk", "backing": None},
    # Sizes by the geometry differ from the size the image states.
    "vpc": {"driver": "vpc", "force_size_calc": "current_size"},
    "vhdx": {"driver": "vhdx"},
    "vdi": {"driver": "vdi"},
}
FORMATS = frozenset(_DRIVERS)

_PROGRESS = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
# A progress mark is shorter than this; what is kept of an unfinished one.
_MARK_LENGTH = 32


def source(fd: int, image_format: str) -> str:
    """Return qemu-img's file name argument for the image behind ``fd``."""
    file = {"driver": "file", "filename": f"/proc/self/fd/{fd}", "locking": "off"}
    return "json:" + json.dumps({**_DRIVERS[image_format], "file": file})


def convert(
    settings: QemuSettings,
    fd: int,
    image_format: str,
    device_fd: int,
    *,
    is_block: bool,
    reads_zero: bool,
    direct: bool,
) -> list[str]:
    """Write the image behind ``fd`` onto the device behind ``device_fd``.

    ``-n`` opens the target as it stands, ``-W`` with several coroutines writes out of order (three times
    faster from compressed images), ``-t none`` goes past the page cache. The source stays cached: it has
    just been written, and reading it uncached is two to three times slower.
    """
    driver = "host_device" if is_block else "file"
    return [
        *sandboxed(settings, [fd], [device_fd]), "convert", "-p", "-n", "-W", "-m", str(settings.coroutines),
        "-t", "none" if direct else "writeback", "-T", "writeback",
        *(["--target-is-zero"] if reads_zero else []),
        *(["-r", str(int(settings.rate_limit))] if settings.rate_limit else []),
        "--target-image-opts", source(fd, image_format),
        f"driver=raw,file.driver={driver},file.filename=/proc/self/fd/{device_fd}",
    ]  # fmt: skip


def info(settings: QemuSettings, fd: int, image_format: str) -> list[str]:
    """Return the command that prints QEMU's information about the image behind ``fd`` as JSON."""
    return [*sandboxed(settings, [fd]), "info", "--output=json", source(fd, image_format)]


def check(settings: QemuSettings, fd: int, image_format: str) -> list[str]:
    """Check the tables of the image behind ``fd``; its data are not read."""
    return [*sandboxed(settings, [fd]), "check", source(fd, image_format)]


def probe(settings: QemuSettings) -> list[str]:
    """Print the layers of the sandbox that this host lacks, a line each, as ``name: reason``."""
    return sandboxed(settings, [], mode="probe")


def sandboxed(
    settings: QemuSettings, readable: Sequence[int], writable: Sequence[int] = (), *, mode: str | None = None
) -> list[str]:
    """qemu-img without a reach beyond those descriptors (``sandbox``)."""
    return [
        # -I -S: it needs Python alone, and starts in half the time without the packages around it.
        sys.executable, "-I", "-S", str(Path(__file__).with_name("sandbox.py")), mode or settings.sandbox,
        str(int(settings.memory_limit)), ",".join(map(str, readable)), ",".join(map(str, writable)), settings.path,
    ]  # fmt: skip


class Progress:
    """Reads progress out of what qemu-img prints, in whatever pieces it comes; never falls."""

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
