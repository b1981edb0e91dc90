"""The guest's basics work: LVM, thin pools, device nodes, discards, and a disk with 4096-byte sectors."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.disks import disk

VG = "smoke"
MIB = 1 << 20


def call(*command: str) -> str:
    """Run a tool that must succeed and return its output; a failure shows it."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def volume_group() -> Iterator[str]:
    """A volume group on the disk `plain`, removed after the tests."""
    call("vgcreate", "--yes", VG, disk("plain"))
    yield VG
    call("vgremove", "-ff", "--yes", VG)
    call("pvremove", "-ff", "--yes", disk("plain"))


def test_a_linear_volume(volume_group: str) -> None:
    """It appears as /dev/VG/LV, can be written to, and can be zeroed by the device."""
    call("lvcreate", "--yes", "--wipesignatures", "y", "-L", "64M", "-n", "linear", volume_group)
    node = Path("/dev") / volume_group / "linear"
    assert node.is_block_device()
    with node.open("r+b", buffering=0) as device:
        device.write(b"\xa5" * MIB)
    call("blkdiscard", "--zeroout", str(node))
    with node.open("rb", buffering=0) as device:
        assert device.read(MIB) == bytes(MIB)


def test_a_thin_snapshot(volume_group: str) -> None:
    """Pool, thin volume, snapshot, lvextend and blkdiscard: everything that a cloning target uses."""
    call("lvcreate", "--yes", "--type", "thin-pool", "-L", "256M", "-n", "pool", volume_group)
    call("lvcreate", "--yes", "-V", "64M", "--thinpool", "pool", "-n", "base", volume_group)
    base = Path("/dev") / volume_group / "base"
    with base.open("r+b", buffering=0) as device:
        device.write(b"\x5a" * MIB)
    call("lvcreate", "--yes", "-kn", "-s", "-n", "clone", f"{volume_group}/base")
    call("lvextend", "-L", "128M", f"{volume_group}/clone")
    clone = Path("/dev") / volume_group / "clone"
    with clone.open("rb", buffering=0) as device:
        assert device.read(MIB) == b"\x5a" * MIB
    assert int(call("blockdev", "--getsize64", str(clone))) == 128 * MIB
    assert mapped_percent(volume_group, "clone") > 0
    call("blkdiscard", str(clone))
    assert mapped_percent(volume_group, "clone") == 0


def mapped_percent(volume_group: str, volume: str) -> float:
    """Return the percentage of a thin volume that is mapped in the pool."""
    return float(call("lvs", "--noheadings", "-o", "data_percent", f"{volume_group}/{volume}"))


def test_the_4kn_disk() -> None:
    """The disk `4kn` has logical and physical sectors of 4096 bytes, the disk `plain` of 512."""
    assert call("blockdev", "--getss", "--getpbsz", disk("4kn")).split() == ["4096", "4096"]
    assert call("blockdev", "--getss", disk("plain")) == "512"


def test_a_faulty_device() -> None:
    """dm-error fails reads with EIO."""
    sectors = call("blockdev", "--getsz", disk("fault"))
    call("dmsetup", "create", "smoke-error", "--table", f"0 {sectors} error")
    try:
        with Path("/dev/mapper/smoke-error").open("rb", buffering=0) as dev, pytest.raises(OSError, match="Errno 5"):
            dev.read(4096)
    finally:
        call("dmsetup", "remove", "--retry", "smoke-error")
