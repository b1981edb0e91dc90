"""Decides whether guests run under KVM: only if a trial boot of the guest's kernel succeeds.

It is not enough that /dev/kvm can be opened: on some cloud machines the guest's kernel then hangs.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from .cache import KEEP, cache_directory, key_of

DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Use the plain `qemu64` processor: hashing takes a third of the time it takes with `max`, whose vector instructions are
# emulated one by one, and `max,-svm` does not boot with qemu 7.2.
EMULATED = ("-cpu", "qemu64", "-accel", "tcg,thread=multi,tb-size=512")
KVM = ("-cpu", "host", "-accel", "kvm")
# A kernel without disks reaches its panic in a second under KVM.
PROBE_TIMEOUT = 10  # seconds
PANIC = b"Kernel panic - not syncing: VFS"


def options(kernel: Path) -> tuple[str, ...]:
    """Return qemu's processor options for a guest with this kernel; the result is cached until the next boot."""
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return EMULATED
    status = kernel.stat()
    key = key_of(BOOT_ID.read_text(), *KVM, str(kernel), str(status.st_size), str(status.st_mtime_ns))
    verdict = cache_directory() / f"kvm-{key}"
    if not verdict.exists():
        works = boots(kernel)
        for old in verdict.parent.glob("kvm-*"):
            if time.time() - old.stat().st_mtime > KEEP:
                old.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=verdict.parent, delete=False) as file:
            file.write("yes" if works else "no")
        Path(file.name).rename(verdict)
    return KVM if verdict.read_text() == "yes" else EMULATED


def boots(kernel: Path, timeout: float = PROBE_TIMEOUT) -> bool:
    """Return whether the kernel boots under KVM until it looks for its disks."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
               "-machine", "pc", "-m", "256M", *KVM, "-kernel", str(kernel), "-append", "console=ttyS0 panic=-1",
               "-serial", "stdio"]  # fmt: skip
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return False
    return PANIC in done.stdout
