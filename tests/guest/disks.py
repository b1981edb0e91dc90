"""Paths of the test disks, for tests in the guest. harness/drives.py has the table."""

from pathlib import Path


def disk(name: str) -> str:
    """Return the device of the test disk `plain`, `thin`, `tiny`, `4kn` or `fault`."""
    path = Path("/dev/disk/by-id") / f"virtio-{name}"
    if not path.exists():
        raise LookupError(f"the guest has no disk {name!r}")
    return str(path.resolve())
