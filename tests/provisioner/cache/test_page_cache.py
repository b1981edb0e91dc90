"""What images leave in the host's page cache, on a real disk."""

import os
import tempfile
from pathlib import Path

import pytest

from provisioner.contracts import MIB
from tests.provisioner.cache.test_cache import URL, Host, sha

DATA = os.urandom(4 * MIB)


@pytest.fixture
def disk():
    """Not in memory, as /tmp may be: there everything is page cache."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def cached(path):
    """Whether the file's middle is read without the disk."""
    with path.open("rb", buffering=0) as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], path.stat().st_size // 2, os.RWF_NOWAIT) == 4096
        except BlockingIOError:
            return False


@pytest.mark.parametrize("policy", ["give-back", "keep"])
async def test_an_image_leaves_it_when_its_job_does(disk, policy):
    host = Host(disk, {URL: DATA}, page_cache=policy)
    async with host.running():
        entry, _ = await host.get(checksum=sha(DATA))
        path = host.folder / entry.file_name
        assert cached(path) is (policy == "keep")
        path.read_bytes()
        assert (await host.get(checksum=sha(DATA)))[1]
        assert cached(path) is (policy == "keep")


@pytest.mark.parametrize("policy", ["give-back", "keep"])
async def test_what_a_converter_has_read_leaves_it_at_once(disk, policy):
    host = Host(disk, {URL: DATA}, page_cache=policy)
    async with host.running():
        await host.get(checksum=sha(DATA))
        async with host.using(checksum=sha(DATA)) as image:
            path = host.folder / (await image.verified()).file_name
            path.read_bytes()
            image.view("raw", len(DATA)).spent(MIB, 3 * MIB)
            assert cached(path) is (policy == "keep")
