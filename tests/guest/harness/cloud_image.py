"""The recipe of a cloud image: Debian with cloud-init and no password, as publishers make them, in a few packages.

It has no boot loader: qemu starts its kernel. After cloud-init it reports on the serial console and powers off.
"""

from __future__ import annotations

import gzip
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from . import initramfs, sources, tree
from .cache import entry, key_of
from .images import guest_release
from .initramfs import _newc, build_initramfs
from .packages import install_missing
from .tree import _debootstrap

PACKAGES = (
    "linux-image-cloud-amd64", "kmod", "busybox-static", "systemd", "systemd-sysv", "dbus", "udev", "cloud-init",
    "e2fsprogs", "iproute2", "isc-dhcp-client|dhcpcd-base", "netplan.io", "openssh-server",
)  # fmt: skip
SIZE = "1500M"
# Replaces the guests' own init: the kernel takes the last of two files.
INIT = """\
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in $(cat /modules/order); do insmod /modules/$module; done
mount -t ext4 /dev/vda /root || { echo "cannot mount the disk"; poweroff -f; }
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /sbin/init
"""
END = "END OF REPORT"
REPORT = f"""\
[Unit]
Description=Report on the serial console and power off
After=cloud-final.service multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c 'echo; cloud-init status --wait --long; cat /etc/made-by-seed; echo "host: $(hostname)"; \\
  df -m --output=size / | tail -1; echo {END}; systemctl poweroff --force'
[Install]
WantedBy=cloud-init.target
"""


@dataclass(frozen=True)
class CloudImage:
    """The image (qcow2), and its kernel and initramfs for qemu."""

    file: Path
    kernel: Path
    initramfs: Path


def cloud_image() -> CloudImage:
    """Return the image, built if it is missing: less than a minute of processor time."""
    install_missing()
    codename, apt_sources = sources.machine_sources(guest_release())
    recipe = [Path(name).read_bytes() for name in (__file__, tree.__file__, initramfs.__file__) if name]
    folder = entry("cloud", key_of(codename, *recipe), lambda directory: _build(directory, codename, apt_sources))
    return CloudImage(folder / "cloud.qcow2", folder / "kernel", folder / "initramfs")


def _build(directory: Path, codename: str, apt_sources: str) -> None:
    root, sources_file, raw = directory / "tree", directory / "debian.sources", directory / "cloud.raw"
    sources_file.write_text(apt_sources)
    _debootstrap(
        root,
        sources_file,
        codename,
        tuple(name.split("|")[codename != "bookworm"] if "|" in name else name for name in PACKAGES),
    )
    units = root / "etc/systemd/system"
    (units / "report.service").write_text(REPORT)
    (units / "cloud-init.target.wants").mkdir(exist_ok=True)
    (units / "cloud-init.target.wants" / "report.service").symlink_to("../report.service")
    (root / "etc/machine-id").write_text("")
    kernel = next((root / "boot").glob("vmlinuz-*"))
    shutil.copyfile(kernel, directory / "kernel")
    own_init = gzip.compress(_newc([("init", stat.S_IFREG | 0o755, INIT.encode())]), 1, mtime=0)
    archive = build_initramfs(root, kernel.name.removeprefix("vmlinuz-"))
    (directory / "initramfs").write_bytes(archive + own_init)
    tree.pack(root, raw, SIZE)
    tree.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(directory / "cloud.qcow2")])
    raw.unlink()
    shutil.rmtree(root)
