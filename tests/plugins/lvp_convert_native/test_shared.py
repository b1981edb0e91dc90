"""A raw image on the filesystem of its target, where that can share extents."""

import contextlib

import pytest

from provisioner.contracts import MIB

pytestmark = pytest.mark.slow  # a mounted file system


@pytest.fixture
def xfs(bench):
    """A folder on a new XFS."""
    image, folder = bench.folder / "xfs", bench.folder / "mounted"
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    bench.run("mkfs.xfs", "-q", "-m", "reflink=1", image)
    folder.mkdir()
    bench.run("mount", "-o", "loop", image, folder)
    with contextlib.ExitStack() as stack:
        stack.callback(bench.run, "umount", folder)
        yield folder


async def test_extents_are_shared_not_copied(bench, xfs):
    disk = bench.disk(32 * MIB)
    source = xfs / "image"
    source.write_bytes(disk.read_bytes())
    out = xfs / "out"
    out.write_bytes(b"\xa5" * (32 * MIB))
    assert await bench.convert(source, 32 * MIB, "raw", path=out) == disk.read_bytes()
    assert "shared" in bench.run("filefrag", "-v", out)
