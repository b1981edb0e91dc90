"""The qemu process: its command line, its start, and a warden that kills it if the harness dies."""

import contextlib
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from . import acceleration, user_mode
from .drives import Drive, qemu_options
from .images import Images

# For speed under emulation. With panic=-1 and -no-reboot, qemu exits if the kernel panics.
KERNEL_OPTIONS = (
    "console=ttyS0", "loglevel=4", "panic=-1",
    "mitigations=off", "tsc=reliable", "no_timer_check", "nokaslr", "audit=0", "apparmor=0",
    "norandmaps",  # without ASLR the emulator need not re-translate every program: `lvs` takes half the time
    "rcupdate.rcu_expedited=1",  # device-mapper and udev often wait for RCU
    "net.ifnames=0", "systemd.show_status=0",
)  # fmt: skip
# Drivers that no test needs; loading each takes seconds.
UNUSED_MODULES = ("kvm", "kvm_amd", "powernow_k8", "ata_piix", "ata_generic", "aesni_intel", "psmouse", "button")
# Units that no test needs; together they take as long as the rest of a boot under systemd.
MASKED_UNITS = (
    "modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
    "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "dev-hugepages.mount", "dev-mqueue.mount", "proc-sys-fs-binfmt_misc.automount", "systemd-binfmt.service",
    "systemd-logind.service", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
    "systemd-sysusers.service", "systemd-pstore.service", "kmod-static-nodes.service",
)  # fmt: skip
CUT_TIMEOUT = 30  # seconds
# Its standard input is a pipe from the harness. When the harness dies, it kills the guest and removes its files.
WARDEN = 'cat > /dev/null; files=$1; shift; kill -9 "$@"; rm -rf "$files"'


@dataclass(frozen=True)
class Settings:
    """The settings of one guest."""

    images: Images
    directory: Path  # all files of this guest; the warden removes it
    drives: list[tuple[Drive, Path]]
    init: str = "plain"  # or "systemd"
    user_mode: bool = False  # use user-mode Linux instead of emulation
    cache: str = "unsafe"  # qemu's cache mode for every disk
    memory: int = 3072  # MiB
    processors: int = 2
    ports: dict[int, int] = field(default_factory=dict)  # guest port -> port on this machine's loopback


class Machine:
    """One run of qemu or of user-mode Linux, from power on to power off."""

    def __init__(self, settings: Settings, console: Path) -> None:
        self.console = console
        self._network: subprocess.Popen[bytes] | None = None
        with (settings.directory / "qemu.log").open("ab") as log, console.open("wb") as screen:
            kind = acceleration.choose(settings.images, user_mode=settings.user_mode)
            if kind == "user-mode":
                ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                with ours, its:
                    command = user_mode.network_command(settings.ports, ours.fileno())
                    self._network = _start(command, log, ours.fileno())
                    command = user_mode.command_line(settings, its.fileno())
                    self._guest = _start(command, screen, its.fileno())
            else:
                self._guest = _start(command_line(settings, console, kind), log)
        guests = [process.pid for process in (self._guest, self._network) if process]
        self._warden = subprocess.Popen(
            ["sh", "-c", WARDEN, "warden", str(settings.directory), *map(str, guests)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def ended(self) -> bool:
        """Return whether the guest has ended by itself (power off, or a panic)."""
        return self._guest.poll() is not None

    def wait(self, timeout: float) -> None:
        """Wait until the guest has powered itself off; raise `subprocess.TimeoutExpired` if it does not."""
        self._guest.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Cut the power, if it is not off already."""
        self._warden.kill()
        self._warden.wait()
        if self._warden.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._warden.stdin.close()
        if self._network:
            user_mode.cut_power(self._guest.pid)
            self._network.kill()
            self._network.wait()
            # Should it not have ended in time, perhaps because it had just been started, kill it without its times.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guest.wait(CUT_TIMEOUT)
        self._guest.kill()
        self._guest.wait()


def _start(command: list[str], output: IO[bytes], *descriptors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=descriptors, start_new_session=True
    )


def command_line(settings: Settings, console: Path, kind: str) -> list[str]:
    """Return qemu's whole command line; ``kind`` is "kvm" or "emulated"."""
    masks = [f"systemd.mask={unit}" for unit in MASKED_UNITS] if settings.init == "systemd" else []
    blacklist = f"module_blacklist={','.join(UNUSED_MODULES)}"
    kernel_options = " ".join([*KERNEL_OPTIONS, blacklist, *masks, f"guest.init={settings.init}"])
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in settings.ports.items())
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "pc", *acceleration.PROCESSOR[kind],
        "-smp", str(settings.processors), "-m", f"{settings.memory}M",
        "-kernel", str(settings.images.kernel), "-initrd", str(settings.images.initramfs), "-append", kernel_options,
        "-serial", f"file:{console}",
        "-netdev", f"user,id=net{forwards}", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
        *qemu_options(settings.drives, settings.cache),
    ]  # fmt: skip


def free_port() -> int:
    """Return a free loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
