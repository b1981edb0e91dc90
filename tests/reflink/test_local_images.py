"""An image from a local folder on the cache's own file system shares its blocks with the cache."""

import os
import random
from urllib.parse import quote

import pytest

from lvp_source_file import FileSettings, FileSource
from lvp_target_file.reflink import own_bytes
from provisioner.contracts import MIB, BackEndContext, ImageUrl
from provisioner.contracts.errors import RemoteChangedError
from tests.reflink.conftest import in_memory, mounted

pytestmark = pytest.mark.slow  # mounted file systems

DATA = random.Random(3).randbytes(4 * MIB)


async def saved(folder, *, start=0, change=lambda _path: None):
    """Save the image of a folder beside it; return the copy's path and the reported offsets."""
    image, copy, ends = folder / "image", folder / "copy", []
    image.write_bytes(DATA)
    os.sync()
    source = FileSource(FileSettings(folders=[str(folder)]), BackEndContext("local", folder))
    fd = os.open(copy, os.O_RDWR | os.O_CREAT)
    try:
        async with source.open(ImageUrl.parse(f"file://{quote(str(image))}"), start) as stream:
            change(image)
            assert await stream.save(fd, ends.append) == len(DATA)
        os.fsync(fd)
    finally:
        os.close(fd)
    return copy, ends


async def test_cache_shares_blocks(shared):
    copy, ends = await saved(shared)
    assert ends == [len(DATA)]
    assert copy.read_bytes() == DATA
    assert own_bytes(copy) == 0
    (shared / "image").write_bytes(b"x" * len(DATA))  # the blocks are shared until one of them changes
    assert copy.read_bytes() == DATA


async def test_resumed_copy_shares_nothing(shared):
    """A part of the file is already there, so the rest is copied."""
    copy, ends = await saved(shared, start=MIB)
    assert len(ends) == 3
    assert copy.read_bytes() == bytes(MIB) + DATA[MIB:]


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"short"), lambda path: os.truncate(path, 5 * MIB)])
async def test_image_that_changed(shared, change):
    with pytest.raises(RemoteChangedError):
        await saved(shared, change=change)


@pytest.mark.parametrize("kind", ["ext4", "xfs without reflinks", "tmpfs"])
async def test_copied_without_shared_blocks(kind):
    with in_memory() as memory, mounted(kind, memory, 384 * MIB) as folder:
        copy, ends = await saved(folder)
        assert len(ends) == 4
        assert copy.read_bytes() == DATA
