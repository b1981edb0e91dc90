# ruff: noqa: ASYNC240 - small files of a test
"""The cache after changes on disk: modified files, a lost index, a full file system."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from provisioner.contracts import MIB
from provisioner.contracts.errors import CacheError, CacheFullError
from provisioner.contracts.testing import FakeImage
from tests.provisioner.cache.host import DATA, SITE, URL, Host, many, sha


def damage(path):
    path.chmod(0o644)
    path.write_bytes(b"tampered with")


@pytest.mark.parametrize(
    "harm", [Path.unlink, damage, lambda path: os.utime(path, (1, 1))], ids=["gone", "changed", "touched"]
)
@pytest.mark.parametrize("restart", [False, True])
async def test_modified_file_is_not_used(host, harm, restart):
    async with host.running():
        entry, _ = await host.get(checksum=sha(DATA))
        path = Path(host.cache.path(entry))
        if not restart:
            harm(path)
            again, hit = await host.get(checksum=sha(DATA))
            assert not hit
    if restart:
        harm(path)
        async with host.running():
            again, _ = await host.get(checksum=sha(DATA))  # if only touched, the file is hashed again and kept
    assert path.read_bytes() == DATA
    assert again.sha256 == entry.sha256


async def test_symlink_is_not_followed(host):
    async with host.running():
        entry, _ = await host.get(checksum=sha(DATA))
        path = Path(host.cache.path(entry))
        path.unlink()
        path.symlink_to("/etc/passwd")
        assert not (await host.get(checksum=sha(DATA)))[1]
        assert not path.is_symlink()


@pytest.mark.parametrize("loss", ["deleted", "garbage", "middle", "empty"])
async def test_lost_index_is_rebuilt(tmp_path, loss):
    """The files are hashed again; a file whose digest does not match its name, and a foreign one, are ignored."""
    host = Host(tmp_path, many(3))
    async with host.running():
        entries = [(await host.get(url))[0] for url in host.source.images]
    index = host.folder / ".lvp" / "index.sqlite"
    if loss == "deleted":
        index.unlink()
    elif loss == "garbage":
        index.write_bytes(b"not a database at all" * 100)
    elif loss == "middle":
        body = bytearray(index.read_bytes())
        body[4096 : len(body)] = b"\xff" * (len(body) - 4096)
        index.write_bytes(body)
    else:
        index.write_bytes(b"")
    damage(host.folder / entries[0].file_name)
    (host.folder / "backup-202401011200.raw").write_bytes(b"the user's own")
    async with host.running():
        assert {entry.sha256 for entry in host.cache.entries()} == {entry.sha256 for entry in entries[1:]}
        assert (await host.get(entries[1].url, sha(host.source.images[entries[1].url].data)))[1]
    assert (host.folder / "backup-202401011200.raw").read_bytes() == b"the user's own"


async def test_row_of_another_version_is_rebuilt(host):
    import sqlite3

    async with host.running():
        entry, _ = await host.get()
    db = sqlite3.connect(host.folder / ".lvp" / "index.sqlite")
    with db:
        db.execute("UPDATE entries SET body = '{\"other\": 1}'")
    db.close()
    async with host.running():
        assert [found.sha256 for found in host.cache.entries()] == [entry.sha256]


async def test_directory_unusable(tmp_path):
    host = Host(tmp_path)
    host.folder.write_text("a file")
    with pytest.RaisesGroup(CacheError, allow_unwrapped=True, flatten_subgroups=True):
        async with host.running():
            pass


async def test_disk_full_in_download(small_disk):
    """Even if room was misjudged, the job fails cleanly, and the cache is unchanged and keeps working."""
    host = Host(small_disk, {URL: DATA, f"{SITE}/big.raw": FakeImage(b"x" * (8 * MIB))})
    async with host.running() as cache:
        entry, _ = await host.get(checksum=sha(DATA))

        async def no_room(_wanted, _there):
            await trio.lowlevel.checkpoint()

        cache._downloads._make_room = no_room
        with pytest.raises(CacheFullError, match="full"):
            await host.get(f"{SITE}/big.raw")
        host.assert_clean([entry.file_name])
        assert (await host.get(checksum=sha(DATA)))[1]


async def test_disk_full_at_publishing(small_disk):
    """If the index cannot be written, no unknown file is left, and cached images remain usable."""
    host = Host(small_disk, {URL: DATA, f"{SITE}/other.raw": DATA[::-1]})
    async with host.running() as cache:
        entry, _ = await host.get(checksum=sha(DATA))
        publish = cache._files.publish

        def publish_on_a_full_disk(*arguments, **more):
            filler = small_disk / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            return publish(*arguments, **more)

        cache._files.publish = publish_on_a_full_disk
        with pytest.raises(CacheFullError, match="full"):
            await host.get(f"{SITE}/other.raw")
        host.assert_clean([entry.file_name])
        assert (await host.get(checksum=sha(DATA)))[1]
    async with host.running():
        assert [found.sha256 for found in host.cache.entries()] == [entry.sha256]
