"""Images in the host's page cache, on a real disk."""

import os
import tempfile
from functools import wraps
from pathlib import Path

import pytest
import trio

from provisioner.cache.image import CacheView
from provisioner.contracts import MIB
from provisioner.download.growing_file import GrowingFile
from tests.provisioner.cache.host import URL, Host, sha

DATA = os.urandom(4 * MIB)


@pytest.fixture
def disk():
    """A folder on disk. /tmp may be a tmpfs, whose files are always in the page cache."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def cached(path):
    """Whether the middle of the file can be read without disk I/O."""
    with path.open("rb", buffering=0) as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], path.stat().st_size // 2, os.RWF_NOWAIT) == 4096
        except BlockingIOError:
            return False


def on_a_busy_disk(test):
    """Retry a test up to three times: dropping pages is advisory, and the kernel keeps those it is using."""

    @wraps(test)
    async def tried(**fixtures):
        for _ in range(3):
            try:
                return await test(**fixtures)
            except (AssertionError, ExceptionGroup):
                await trio.sleep(0.5)
        return await test(**fixtures)

    return tried


@pytest.mark.parametrize("policy", ["give-back", "keep"])
@on_a_busy_disk
async def test_pages_dropped_after_use(disk, policy):
    host = Host(disk, {URL: DATA}, page_cache=policy)
    async with host.running():
        entry, _ = await host.get(checksum=sha(DATA))
        path = host.folder / entry.file_name
        assert cached(path) is (policy == "keep")
        path.read_bytes()
        assert (await host.get(checksum=sha(DATA)))[1]
        assert cached(path) is (policy == "keep")


@pytest.mark.parametrize("policy", ["give-back", "keep"])
@on_a_busy_disk
async def test_pages_dropped_when_spent(disk, policy):
    host = Host(disk, {URL: DATA}, page_cache=policy)
    async with host.running():
        await host.get(checksum=sha(DATA))
        async with host.using(checksum=sha(DATA)) as image:
            path = host.folder / (await image.verified()).file_name
            path.read_bytes()
            image.view("raw", len(DATA)).spent(MIB, 3 * MIB)
            assert cached(path) is (policy == "keep")


@on_a_busy_disk
async def test_unhashed_pages_are_kept(disk, monkeypatch):
    monkeypatch.setattr("provisioner.cache.image.BEHIND", 0)
    monkeypatch.setattr("provisioner.cache.image.STEP", MIB // 8)
    path = disk / "image"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        growing_file = GrowingFile(file.fileno(), len(DATA))
        growing_file.advance(len(DATA))
        view = CacheView(file.fileno(), "raw", len(DATA), len(DATA), growing_file)
        view.spent(4 * MIB, 4 * MIB)
        assert cached(path), "hashing would have to read it from the disk"
        growing_file.hashed = 4 * MIB
        view.spent(4 * MIB, 4 * MIB)
        assert not cached(path)
