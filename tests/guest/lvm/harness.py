"""Volume groups on the guest's disks for the tests of the LVM targets, and functions to prepare and inspect them."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from lvp_target_lvm import LvmSettings, PlainTarget, ThinSettings
from lvp_target_lvm.thin import ThinTarget, make_thin_target
from provisioner.contracts import BackEndContext, Provenance, StageRequest

MIB = 1024**2
DIGEST = "sha256:" + "ab" * 32
PATTERN = b"\xa5" * MIB
BLKFLSBUF = 0x1261  # linux/fs.h


def lvm(*words: str) -> str:
    """Run an LVM command and return its output; a failure shows its error messages."""
    done = subprocess.run(["lvm", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"lvm {' '.join(words)}: {done.stderr}{done.stdout}"
    return done.stdout


def run(*words: str) -> str:
    """Run a tool that must succeed; return its output."""
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def make_group(name: str, device: str, *options: str) -> None:
    """Create a volume group on a whole device, even if an earlier run left one there."""
    subprocess.run(["lvm", "vgremove", "-ff", "--yes", name], capture_output=True, check=False)
    lvm("vgcreate", "--yes", *options, name, device)


def drop_group(name: str, device: str) -> None:
    """Remove the volume group with all of its volumes."""
    lvm("vgremove", "-ff", "--yes", name)
    lvm("pvremove", "-ff", "--yes", device)


def volumes(group: str) -> dict[str, dict[str, str]]:
    """Return every volume of the group by name, with the fields that the tests use."""
    fields = "lv_name,lv_uuid,lv_size,lv_tags,lv_active,pool_lv,lv_permissions,lv_skip_activation,lv_layout"
    report = json.loads(lvm("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, group))
    return {row["lv_name"]: row for row in report["report"][0]["lv"]}


def clear(group: str) -> None:
    """Remove every volume except thin pools. After a failed test a device may be busy for a moment."""
    for _ in range(20):
        going = [name for name, row in volumes(group).items() if "pool" not in row["lv_layout"]]
        if not going:
            return
        for name in going:
            subprocess.run(["lvm", "lvremove", "--yes", f"{group}/{name}"], capture_output=True, check=False)
        time.sleep(0.1)
    raise AssertionError(f"could not clear {group}: {going}")


STATE = Path("/var/tmp/lab-state")


def plain_target(group: str, state: Path = STATE, **settings: Any) -> PlainTarget:
    """Return a target ``lvm``."""
    made = LvmSettings(volume_group=group, **settings)
    return PlainTarget(made, BackEndContext("lab", state))


def thin_target(group: str, pool: str = "pool", state: Path = STATE, **settings: Any) -> ThinTarget:
    """Return a target ``thin-lvm``; it clones unless ``clone=False``."""
    made = ThinSettings(volume_group=group, pool=pool, **settings)
    return make_thin_target(made, BackEndContext("lab", state))


def request(name: str = "web01", size: int = 32 * MIB, job: str = "job-1", digest: str | None = None) -> StageRequest:
    """Return a request to stage a volume."""
    url = "https://images.example.com/pub/disk image.qcow2?v=1&x=%7e"
    return StageRequest(name, size, Provenance(job, url, digest, 1_700_000_000.125))


def write(path: str, data: bytes, offset: int = 0) -> None:
    """Write and sync ``data`` to a device, and wait until udev, which probes the device after a write, has closed it.

    The first ``settle`` lets udev notice the close, the second waits for the event that this triggers.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        while data:
            written = os.pwrite(fd, data, offset)
            offset, data = offset + written, data[written:]
        os.fsync(fd)
    finally:
        os.close(fd)
    for _ in range(2):
        run("udevadm", "settle", "--timeout=60")


def content(path: str, length: int = -1) -> bytes:
    """Return the content of a device, or its first bytes, from the disk and not from the page cache."""
    with Path(path).open("rb") as device:
        fcntl.ioctl(device, BLKFLSBUF)
        return device.read(length)


def difference(path: str, expected: bytes) -> str:
    """Return where a device first differs from ``expected``, or an empty string. The message stays short."""
    found = content(path)
    if found == expected:
        return ""
    if len(found) != len(expected):
        return f"{len(found)} bytes instead of {len(expected)}"
    at = next(at for at in range(0, len(found), 512) if found[at : at + 512] != expected[at : at + 512])
    return f"differs from byte {at}: {found[at : at + 16]!r} instead of {expected[at : at + 16]!r}"


def head(path: str, length: int) -> bytes:
    """Return the first bytes of a device."""
    return content(path, length)


def has_pattern(path: str, byte: bytes = b"\xa5") -> bool:
    """Return whether a device still contains a previous owner's bytes."""
    found = content(path)
    # Searching for one byte first takes a tenth of the time under emulation.
    return byte in found and byte * 4096 in found


def fill_with_pattern(group: str) -> None:
    """Fill every free extent of the group with the bytes of a previous owner."""
    lvm("lvcreate", "--yes", "-Wn", "-l", "100%FREE", "-n", "previous", group)
    block = mmap.mmap(-1, 4 * MIB)  # O_DIRECT needs an aligned buffer
    block.write(PATTERN * 4)
    fd = os.open(f"/dev/{group}/previous", os.O_WRONLY | os.O_DIRECT)
    try:
        left = os.lseek(fd, 0, os.SEEK_END)
        os.lseek(fd, 0, os.SEEK_SET)
        while left:
            left -= os.write(fd, memoryview(block)[:left])
    finally:
        os.close(fd)
    lvm("lvremove", "--yes", f"{group}/previous")
