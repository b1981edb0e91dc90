"""What the guest is for works in it: LVM, thin pools, device nodes, discards, and a disk with 4096-byte sectors."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.disks import disk

VG = "smoke"
MIB = 1 << 20


def call(*command: str) -> str:
    """Run a tool; its output is in the failure."""
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


def test_a_volume_has_its_node_keeps_data_and_reads_zero_after_zeroout(volume_group: str) -> None:
    """A linear volume appears under /dev/VG/LV, can be written, and the device clears it."""
    call("lvcreate", "--yes", "--wipesignatures", "y", "-L", "64M", "-n", "linear", volume_group)
    node = Path("/dev") / volume_group / "linear"
    assert node.is_block_device()
    with node.open("r+b", buffering=0) as device:
        device.write(b"\xa5" * MIB)
    call("blkdiscard", "--zeroout", str(node))
    with node.open("rb", buffering=0) as device:
        assert device.read(MIB) == bytes(MIB)


def test_a_thin_snapshot_grows_and_gives_its_blocks_back(volume_group: str) -> None:
    """Pool, thin volume, snapshot, lvextend and blkdiscard: what a cloning target is made of."""
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
    """How much of a thin volume stands in the pool."""
    return float(call("lvs", "--noheadings", "-o", "data_percent", f"{volume_group}/{volume}"))


def test_the_4kn_disk_has_sectors_of_4096_bytes() -> None:
    """Logical and physical sectors of the disk `4kn`, against those of `plain`."""
    assert call("blockdev", "--getss", "--getpbsz", disk("4kn")).split() == ["4096", "4096"]
    assert call("blockdev", "--getss", disk("plain")) == "512"


def test_faulty_devices_can_be_stacked() -> None:
    """dm-error answers with EIO, so faults can be tested where they happen."""
    sectors = call("blockdev", "--getsz", disk("fault"))
    call("dmsetup", "create", "smoke-error", "--table", f"0 {sectors} error")
    try:
        with Path("/dev/mapper/smoke-error").open("rb", buffering=0) as dev, pytest.raises(OSError, match="Errno 5"):
            dev.read(4096)
    finally:
        call("dmsetup", "remove", "--retry", "smoke-error")
