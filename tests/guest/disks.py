"""For tests in the guest: where the empty test disks are (harness/drives.py has the table)."""

from pathlib import Path


def disk(name: str) -> str:
    """The device of the test disk `plain`, `thin`, `tiny`, `4kn` or `fault`."""
    path = Path("/dev/disk/by-id") / f"virtio-{name}"
    if not path.exists():
        raise LookupError(f"the guest has no disk {name!r}")
    return str(path.resolve())
