"""The guest's disks: the table of test disks, their files, and qemu's options for them."""

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
SECTOR = 512


@dataclass(frozen=True)
class Drive:
    """A virtio disk; in the guest it is /dev/disk/by-id/virtio-NAME."""

    name: str
    size: int  # bytes
    block_size: int = SECTOR  # bytes, logical and physical
    read_only: bool = False


# Each is a sparse file on the machine that runs the harness. It is empty at the first boot and survives a power cut.
TEST_DRIVES = (
    Drive("plain", 8 * GIB),  # a volume group of linear volumes
    Drive("thin", 8 * GIB),  # a volume group with a thin pool
    Drive("tiny", 256 * MIB),  # small enough to fill up
    Drive("4kn", 2 * GIB, block_size=4096),
    Drive("fault", 2 * GIB),  # below dm-error, dm-flakey and dm-delay
)


def create(drive: Drive, directory: Path) -> Path:
    """Create the drive's sparse file."""
    path = directory / f"{drive.name}.raw"
    with path.open("wb") as file:
        file.truncate(drive.size)
    return path


def qemu_options(drives: list[tuple[Drive, Path]], cache: str) -> list[str]:
    """Return qemu's options for the drives. The guest names them vda, vdb, ... in the order of the list."""
    options = []
    for slot, (drive, path) in enumerate(drives, start=4):
        backend = f"if=none,id=drive-{drive.name},file={_escaped(path)},format=raw,cache={cache},discard=unmap"
        device = f"virtio-blk-pci,drive=drive-{drive.name},serial={drive.name},addr={slot:#x}"
        sectors = f",logical_block_size={drive.block_size},physical_block_size={drive.block_size}"
        options += ["-drive", backend + (",readonly=on" if drive.read_only else ""), "-device", device + sectors]
    return options


def _escaped(path: Path) -> str:
    """Escape commas, which separate qemu's options, by doubling them."""
    return str(path).replace(",", ",,")
