"""Builds the guest's initramfs: busybox, the modules for the disks, and a script that mounts them and starts init.

Debian's own (initramfs-tools) takes some 20 s to build, and as long again to unpack and run under emulation.
"""

import gzip
import lzma
import stat
import subprocess
from pathlib import Path

MODULES = ("virtio_pci", "virtio_blk", "ext4")  # those built into the kernel are left out
TOOLS = ("sh", "mount", "insmod", "mkdir", "switch_root", "cat", "sleep", "poweroff")

# The three system disks come first on the bus (see drives.py), so their names never change.
INIT = """\
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in $(cat /modules/order); do insmod /modules/$module; done
mount -t ext4 -o noatime,noinit_itable /dev/DISKSa /root &&
mount -t ext4 -o noatime,noload,ro /dev/DISKSb /root/opt/site &&
mount -t ext4 -o noatime,noinit_itable /dev/DISKSc /root/project ||
{ echo "guest: cannot mount the system disks"; sleep 1; poweroff -f; }
read -r line < /proc/cmdline
init=/project/tests/guest/harness/inside/plain-init
case "$line" in *guest.init=systemd*) init=/lib/systemd/systemd;; esac
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root $init
"""


def build_initramfs(tree: Path, kernel: str, modules: tuple[str, ...] = MODULES, disks: str = "vd") -> bytes:
    """Return the archive, built from a Debian tree with kernel version `kernel` and busybox.

    :param modules: loaded with what they depend on, before the disks are mounted
    :param disks: the start of the names of the disks' devices
    """
    files = _module_files(tree, kernel, modules)
    entries: list[tuple[str, int, bytes]] = [
        (name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "proc", "root", "modules")
    ]
    entries += [("dev/console", stat.S_IFCHR | 0o600, b"")]
    entries += [("bin/busybox", stat.S_IFREG | 0o755, (tree / "bin/busybox").read_bytes())]
    entries += [(f"bin/{tool}", stat.S_IFLNK | 0o777, b"busybox") for tool in TOOLS]
    entries += [(f"modules/{file.name}", stat.S_IFREG | 0o644, _module(file)) for file in files]
    entries += [("modules/order", stat.S_IFREG | 0o644, "\n".join(file.name for file in files).encode())]
    entries += [("init", stat.S_IFREG | 0o755, INIT.replace("DISKS", disks).encode())]
    # The kernel unpacks gzip level 1 as fast as it reads uncompressed data, and faster than smaller archives.
    return gzip.compress(_newc(entries), 1, mtime=0)


def _module_files(tree: Path, kernel: str, modules: tuple[str, ...]) -> list[Path]:
    """Return the modules' files and their dependencies in load order. Uses the tree's kmod: the host may lack it."""
    files: dict[Path, None] = {}
    for module in modules:
        shown = subprocess.run(
            ["chroot", str(tree), "/sbin/modprobe", "--set-version", kernel, "--show-depends", module],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for line in shown.splitlines():
            kind, _, path = line.partition(" ")
            if kind == "insmod":
                files[tree / path.split()[0].lstrip("/")] = None
    return list(files)


def _module(file: Path) -> bytes:
    """Return a module's content, decompressed: busybox cannot decompress those of Debian 13."""
    data = file.read_bytes()
    return lzma.decompress(data) if file.suffix == ".xz" else data


def _newc(entries: list[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive in the kernel's `newc` format (Documentation/driver-api/early-userspace)."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields)
        out += name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)
