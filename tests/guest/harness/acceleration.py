"""Decides how guests run: under KVM, as user-mode Linux, or emulated, the first of these that boots here.

It is not enough that /dev/kvm can be opened: on some cloud machines the guest's kernel then hangs.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import user_mode as user_mode_linux
from .cache import KEEP, cache_directory, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .images import Images

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CHOICES = ("kvm", "user-mode", "emulated")
# qemu's options. Use the plain `qemu64` processor: hashing takes a third of the time it takes with `max`, whose vector
# instructions are emulated one by one, and `max,-svm` does not boot with qemu 7.2.
PROCESSOR = {
    "kvm": ("-cpu", "host", "-accel", "kvm"),
    "emulated": ("-cpu", "qemu64", "-accel", "tcg,thread=multi,tb-size=512"),
}
# A kernel without disks reaches its panic in a second under KVM.
PROBE_TIMEOUT = 10  # seconds
PANIC = b"Kernel panic - not syncing: VFS"


def choose(images: Images, *, user_mode: bool) -> str:
    """Return one of CHOICES: KVM if it works, else user-mode Linux if that is wanted and works, else emulated."""
    if os.access(DEVICE, os.R_OK | os.W_OK) and _verdict("kvm", images.kernel, boots):
        return "kvm"
    if user_mode and _verdict("user-mode", images.user_mode_kernel, user_mode_linux.boots):
        return "user-mode"
    return "emulated"


def _verdict(kind: str, kernel: Path, trial: Callable[[Path], bool]) -> bool:
    """Return the result of a trial boot, which is cached until the machine's next boot."""
    status = kernel.stat()
    key = key_of(
        BOOT_ID.read_text(), *PROCESSOR.get(kind, ()), str(kernel), str(status.st_size), str(status.st_mtime_ns)
    )
    verdict = cache_directory() / f"boots-{kind}-{key}"
    if not verdict.exists():
        works = trial(kernel)
        for old in verdict.parent.glob("boots-*"):
            if time.time() - old.stat().st_mtime > KEEP:
                old.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=verdict.parent, delete=False) as file:
            file.write("yes" if works else "no")
        Path(file.name).rename(verdict)
    return verdict.read_text() == "yes"


def boots(kernel: Path, timeout: float = PROBE_TIMEOUT) -> bool:
    """Return whether the kernel boots under KVM until it looks for its disks."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
               "-machine", "pc", "-m", "256M", *PROCESSOR["kvm"], "-kernel", str(kernel),
               "-append", "console=ttyS0 panic=-1", "-serial", "stdio"]  # fmt: skip
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    return PANIC in done.stdout
