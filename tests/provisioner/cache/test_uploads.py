"""Uploads into the cache: a full disk, room for what is missing only, and cancels at every piece."""

import pytest
import trio

from provisioner.cache import Upload
from provisioner.contracts import MIB
from provisioner.contracts.errors import CacheFullError, ConflictError
from tests.provisioner.cache.host import DATA, Host, sha


class Sent:
    """The body of an upload."""

    def __init__(self, *pieces):
        self.pieces = [*pieces]

    async def read(self):
        await trio.lowlevel.checkpoint()
        return self.pieces.pop(0) if self.pieces else b""


async def test_disk_full_in_upload(small_disk):
    """Even if room was misjudged, the upload leaves nothing."""
    host = Host(small_disk)
    async with host.running() as cache:

        async def no_room(_wanted, _there):
            await trio.lowlevel.checkpoint()

        cache.uploads._make_room = no_room
        data = b"x" * (8 * MIB)
        with pytest.raises(CacheFullError, match="full"):
            await cache.uploads.receive(
                Upload(sha(data).hex, len(data), "big", "token:a"), 0, Sent(data[:MIB], data[MIB:])
            )
        host.assert_clean()


async def test_resumed_upload_needs_room_for_its_rest_only(small_disk):
    """What is on the disk already is not asked for twice: 3 of 4 MiB are one file, of which 2 are there."""
    host = Host(small_disk)
    data = b"x" * (3 * MIB)
    upload = Upload(sha(data).hex, len(data), "big", "token:a")
    async with host.running() as cache:
        with pytest.raises(ConflictError, match="go on from byte 2097152"):
            await cache.uploads.receive(upload, 0, Sent(data[: 2 * MIB]))
        assert cache.uploads.state(upload) == (False, 2 * MIB)
        entry = await cache.uploads.receive(upload, 2 * MIB, Sent(data[2 * MIB :]))
        host.assert_clean([entry.file_name])


async def test_cancelled_upload_is_kept(tmp_path):
    """Wherever the request is cancelled, the file is closed, and what has arrived can be resumed."""
    host = Host(tmp_path)
    upload = Upload(sha(DATA).hex, len(DATA), "disk.raw", "token:a")
    async with host.running() as cache:
        done, cut = False, 0
        while not done:
            cut += 1
            start = cache.uploads.state(upload)[1]
            with trio.CancelScope() as scope:
                body = Sent(*(DATA[at : at + 65536] for at in range(start, len(DATA), 65536)))
                await cache.uploads.receive(upload, start, CancelAt(body, cut, scope))
                done = True
            running, there = cache.uploads.state(upload)
            assert not running
            assert there >= start or done
        assert cut > 2
        host.assert_clean([entry.file_name for entry in cache.entries()])


class CancelAt:
    """A body whose request is cancelled at its ``last``-th read."""

    def __init__(self, body, last, scope):
        self.body, self.left, self.scope = body, last, scope

    async def read(self):
        self.left -= 1
        if not self.left:
            self.scope.cancel()
        return await self.body.read()
