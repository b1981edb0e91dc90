"""Owns the tools the host needs, and their installation by apt when one is missing."""

import os
import shutil
import subprocess
import sys

# Command that must be found -> Debian package that brings it.
HOST_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "mkfs.ext4": "e2fsprogs",
    "systemd-nspawn": "systemd-container",
}
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
# Another apt run holds the lock for as long as its installation takes.
LOCK_TIMEOUT = 300  # seconds


def missing_packages() -> list[str]:
    """Name the Debian packages whose command is not on this machine."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    return [package for tool, package in HOST_TOOLS.items() if not shutil.which(tool, path=path)]


def install_missing() -> None:
    """Install the tools that are missing, and say so; does nothing when all are there."""
    missing = missing_packages()
    if not missing:
        return
    print(f"guest: installing {' '.join(missing)}", file=sys.stderr, flush=True)
    apt_get("update", "-qq")
    apt_get("install", "-qq", "--no-install-recommends", *missing)


def apt_get(*args: str) -> None:
    """Run apt-get without questions; its output is shown only when it fails."""
    command = ["apt-get", "-y", "-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT}", *args]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
