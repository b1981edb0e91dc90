"""The qemu process: its command line, its start, and a warden that kills it if the harness dies."""

import contextlib
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import acceleration
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
# Its standard input is a pipe from the harness. When the harness dies, it kills qemu and removes the guest's files.
WARDEN = 'cat > /dev/null; kill -9 "$1"; rm -rf "$2"'


@dataclass(frozen=True)
class Settings:
    """The settings of one guest."""

    images: Images
    directory: Path  # all files of this guest; the warden removes it
    drives: list[tuple[Drive, Path]]
    init: str = "plain"  # or "systemd"
    cache: str = "unsafe"  # qemu's cache mode for every disk
    memory: int = 3072  # MiB
    processors: int = 2
    ports: dict[int, int] = field(default_factory=dict)  # guest port -> port on this machine's loopback


class Machine:
    """One run of qemu, from power on to power off."""

    def __init__(self, settings: Settings, console: Path) -> None:
        self.console = console
        with (settings.directory / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                command_line(settings, console), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._warden = subprocess.Popen(
            ["sh", "-c", WARDEN, "warden", str(self._qemu.pid), str(settings.directory)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def ended(self) -> bool:
        """Return whether qemu has exited by itself (power off, or a panic)."""
        return self._qemu.poll() is not None

    def wait(self, timeout: float) -> None:
        """Wait until the guest has powered itself off; raise `subprocess.TimeoutExpired` if it does not."""
        self._qemu.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Cut the power, if it is not off already."""
        self._warden.kill()
        self._warden.wait()
        if self._warden.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._warden.stdin.close()
        self._qemu.kill()
        self._qemu.wait()


def command_line(settings: Settings, console: Path) -> list[str]:
    """Return qemu's whole command line."""
    masks = [f"systemd.mask={unit}" for unit in MASKED_UNITS] if settings.init == "systemd" else []
    blacklist = f"module_blacklist={','.join(UNUSED_MODULES)}"
    kernel_options = " ".join([*KERNEL_OPTIONS, blacklist, *masks, f"guest.init={settings.init}"])
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{there}" for there, here in settings.ports.items())
    return [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "pc", *acceleration.options(settings.images.kernel),
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
