"""The recipe of the guest's Debian: its packages, left-out files, changes, and packing.

It builds `root.ext4`, and a kernel with its initramfs for qemu and for user-mode Linux each. They contain nothing of
the project.
"""

import os
import shutil
import subprocess
from pathlib import Path

from .initramfs import build_initramfs
from .sources import machine_options

# The cloud kernel has dm-thin, dm-flakey, virtio, nbd and scsi_debug, and ext4 built in, at a quarter of the size.
PACKAGES = (
    "linux-image-cloud-amd64", "user-mode-linux", "kmod", "busybox-static",
    "systemd", "systemd-sysv", "dbus", "udev",
    "lvm2", "thin-provisioning-tools", "dmsetup",
    "qemu-utils", "nbdkit", "libnbd-bin",
    "python3", "python3-venv", "python3-pip", "python3-pytest",
    "e2fsprogs", "util-linux", "procps", "iproute2", "ca-certificates", "openssl", "curl",
)  # fmt: skip
# Packages that only some tests need, in separate images: other guests need not boot or copy them.
VARIANTS = {
    "plain": (),
    # A virtualization host for the tests of the packages: libvirt, qemu, rpm beside dpkg, and what Ansible needs.
    "hypervisor": ("libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "rpm", "python3-apt"),
}
LEFT_OUT = (
    "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*",
    "/usr/lib/uml/modules/*/kernel/net/*",  # 40 MB
)  # fmt: skip
ROOT_SIZE = "6G"  # sparse: only written blocks take up space

# Not started at boot; their sockets start them when a test needs them.
NOT_AT_BOOT = ("libvirtd.service", "libvirt-guests.service")

# Units that prompt, write to the console or run in the background of a test.
MASKED = (
    "serial-getty@ttyS0.service", "getty@tty1.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "dpkg-db-backup.timer", "systemd-timesyncd.service",
)  # fmt: skip
AGENT_UNIT = """\
[Unit]
Description=Agent of the guest harness
After=systemd-udevd.service local-fs.target
[Service]
Type=exec
ExecStart=/project/tests/guest/harness/inside/agent
KillMode=process
Restart=always
[Install]
WantedBy=multi-user.target
"""


def build_images(directory: Path, codename: str, sources: str, variant: str) -> None:
    """Build the files in `directory`. This takes about a minute, mostly in dpkg."""
    tree = directory / "tree"
    sources_file = directory / "debian.sources"
    sources_file.write_text(sources)
    _debootstrap(tree, sources_file, codename, (*PACKAGES, *VARIANTS[variant]))
    _adapt(tree)
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    shutil.copyfile(kernel, directory / "kernel")
    (directory / "initramfs").write_bytes(build_initramfs(tree, kernel.name.removeprefix("vmlinuz-")))
    _user_mode(tree, directory)
    pack(tree, directory / "root.ext4", ROOT_SIZE)
    shutil.rmtree(tree)


def pack(tree: Path, image: Path, size: str) -> None:
    """Make a sparse ext4 image of `size` with the files of `tree`, without initializing the inode tables."""
    features = ["-m", "0", "-J", "size=16", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"]
    run(["mkfs.ext4", "-q", "-F", *features, "-d", str(tree), str(image), size])


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a build tool; show its output only if it fails."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    done = subprocess.run(
        command, env={**os.environ, "PATH": path, **(environment or {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed with status {done.returncode}:\n{done.stdout[-4000:]}")


def _debootstrap(tree: Path, sources_file: Path, codename: str, packages: tuple[str, ...]) -> None:
    apt = [*machine_options(), 'APT::Install-Recommends "false";']
    dpkg = ["force-unsafe-io", *(f"path-exclude={pattern}" for pattern in LEFT_OUT)]
    run(
        ["mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", "--skip=output/dev",
         f"--include={','.join(packages)}", *(f"--aptopt={option}" for option in apt),
         *(f"--dpkgopt={option}" for option in dpkg), codename, str(tree), str(sources_file)],
        # Keep the kernel's package from building an initramfs, which is not used.
        {"INITRD": "No"},
    )  # fmt: skip


def _user_mode(tree: Path, directory: Path) -> None:
    """Take user-mode Linux out of the tree, and let the guest's kmod find its modules."""
    shutil.move(tree / "usr/bin/linux.uml", directory / "linux.uml")
    (modules,) = (tree / "usr/lib/uml/modules").iterdir()
    (tree / "lib/modules" / modules.name).symlink_to(f"/usr/lib/uml/modules/{modules.name}")
    run(["chroot", str(tree), "/sbin/depmod", modules.name])
    (directory / "initramfs.uml").write_bytes(build_initramfs(tree, modules.name, modules=(), disks="ubd"))


def _adapt(tree: Path) -> None:
    for mount_point in ("project", "opt/site"):
        (tree / mount_point).mkdir(parents=True, exist_ok=True)
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")
    for unit in NOT_AT_BOOT:
        (units / "multi-user.target.wants" / unit).unlink(missing_ok=True)
    (units / "guest-agent.service").write_text(AGENT_UNIT)
    (units / "multi-user.target.wants" / "guest-agent.service").symlink_to("../guest-agent.service")
    # Paths in /usr/local come before Debian's own packages, so the pinned versions win.
    python = (tree / "usr/bin/python3").readlink().name
    paths = tree / f"usr/local/lib/{python}/dist-packages/guest.pth"
    paths.parent.mkdir(parents=True, exist_ok=True)
    paths.write_text("/project/.wheel\n/opt/site\n/project\n/project/plugins\n")
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost guest\n::1 localhost\n10.0.2.2 host\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
