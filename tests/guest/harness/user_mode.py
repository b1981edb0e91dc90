"""User-mode Linux: the guest's Debian on a kernel that is a process of this machine.

Its programs run at this machine's speed, but each system call and page fault costs some 20 µs, and a fork with an exec
15 ms. Its device-mapper is that of any kernel of the same version. It has one processor, and no devices but disks, a
console and the network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .drives import SECTOR, Drive

if TYPE_CHECKING:
    from .machine import Settings

# It reaches its panic in a second on an idle machine.
PROBE_TIMEOUT = 60  # seconds
PANIC = b"Kernel panic - not syncing: VFS"
# The first process in the kernel's own process namespace. User-mode Linux is several processes of this machine, one for
# each address space, and if one of them is killed, others are left. This one waits for all, so that their processor
# time counts as its own. If it is killed itself, this machine's kernel kills all.
FIRST = """
import contextlib, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os.kill(-1, signal.SIGKILL))
kernel = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
status = os.waitpid(kernel, 0)[1]
with contextlib.suppress(ProcessLookupError):
    os.kill(-1, signal.SIGKILL)
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
sys.exit(bool(status))
"""
# On one processor: the kernel and its processes take turns, and waking another processor takes as long as all the rest.
PROCESSOR = str(max(os.sched_getaffinity(0)))
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", sys.executable, "-S", "-c", FIRST)
ALONE = ("taskset", "-c", PROCESSOR, *NAMESPACE)
KERNEL_OPTIONS = (
    "loglevel=4", "con0=null,fd:1", "con=null", "ssl=null", "audit=0", "apparmor=0", "norandmaps",
    "rcupdate.rcu_expedited=1", "net.ifnames=0",
)  # fmt: skip


def command_line(settings: Settings, network: int) -> list[str]:
    """Return the whole command line; its output is the console. ``network`` is a descriptor for its frames."""
    disks = [
        f"ubd{number}{'rc' if drive.read_only else ''}={path}" for number, (drive, path) in enumerate(settings.drives)
    ]
    return [
        *ALONE, str(settings.images.user_mode_kernel),
        f"mem={settings.memory}M", f"initrd={settings.images.user_mode_initramfs}", *disks, *KERNEL_OPTIONS,
        f"uml_dir={settings.directory}", "umid=uml", f"vec0:transport=fd,fd={network}",
        f"guest.init={settings.init}", f"guest.disks={_names(settings.drives)}",
    ]  # fmt: skip


def _names(drives: list[tuple[Drive, Path]]) -> str:
    """Return the drives' names in order, with ``:4096`` after one that has larger sectors than user-mode Linux's."""
    return ",".join(
        drive.name if drive.block_size == SECTOR else f"{drive.name}:{drive.block_size}" for drive, _ in drives
    )


def network_command(ports: dict[int, int], frames: int) -> list[str]:
    """Return the command of the network: qemu without a machine, which has the same network as with one."""
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in ports.items())
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "none",
        "-netdev", f"user,id=user{forwards}", "-netdev", f"dgram,id=frames,local.type=fd,local.str={frames}",
        "-netdev", "hubport,id=port0,hubid=0,netdev=user", "-netdev", "hubport,id=port1,hubid=0,netdev=frames",
    ]  # fmt: skip


def cut_power(unshare: int) -> None:
    """End all processes in the namespace that the process ``unshare`` made; it then ends, too."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for first in Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split():
            os.kill(int(first), signal.SIGTERM)


def boots(kernel: Path, timeout: float = PROBE_TIMEOUT) -> bool:
    """Return whether the kernel boots on this machine until it looks for its disks."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*ALONE, str(kernel), "mem=128M", "con0=null,fd:1", "con=null", "ssl=null", f"uml_dir={folder}",
                   "umid=probe"]  # fmt: skip
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return PANIC in done.stdout + done.stderr
