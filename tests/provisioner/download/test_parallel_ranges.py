"""Further connections for an image: where one is slow they help, where it is not or they do not, there is one."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import trio

from provisioner.contracts import MIB, ImageUrl
from provisioner.contracts.errors import CacheFullError, RemoteChangedError, RemoteUnavailableError
from provisioner.contracts.testing import FakeImage, FakeSource
from provisioner.download.fetch import fetch
from provisioner.download.growing_file import GrowingFile
from provisioner.download.parallel_ranges import FAST, unless_slow

URL = "https://images.example.com/disk.raw"
DATA = random.Random(19).randbytes(48 * MIB)
CHUNK = 64 * 1024


class FarServer(FakeSource):
    """A source with a rate for each connection and one for all together, in bytes per second.

    ``most`` is the largest number of streams that were open at once.
    """

    def __init__(self, each, total=1e12, image=None):
        super().__init__({URL: image or FakeImage(DATA)}, chunk_size=CHUNK)
        self.each, self.total = each, total
        self.most = 0
        self.link = trio.Lock()

    async def pass_by(self, url, start, stop):
        self.most = max(self.most, self.open_now)
        await trio.sleep((stop - start) / self.each)
        async with self.link:
            await trio.sleep((stop - start) / self.total)
        await super().pass_by(url, start, stop)


class Inline:
    """Runs writes in the loop, because threads do not work with a mock clock."""

    @staticmethod
    async def run_sync(work, *args, **_):
        await trio.lowlevel.checkpoint()
        return work(*args)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    monkeypatch.setattr("trio.to_thread", Inline)


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "partial", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


async def get(source, fd, ranges=4):
    """Fetch the image; return the seconds it took, after checking content and counts."""
    growing_file, got = GrowingFile(fd, 1 << 30), []
    began = trio.current_time()
    await fetch(source, await source.stat(ImageUrl.parse(URL)), growing_file, 3, got.append, ranges)
    assert os.pread(fd, 1 << 30, 0) == DATA
    assert growing_file.size == len(DATA) == sum(got)
    assert source.open_now == 0
    return trio.current_time() - began


async def test_slow_connections_add_up(fd, autojump_clock):
    alone = await get(source := FarServer(each=2 * MIB), fd, ranges=1)
    assert (source.most, len(source.opens)) == (1, 1)
    os.ftruncate(fd, 0)
    together = await get(source := FarServer(each=2 * MIB), fd)
    assert source.most == 4
    assert together < 0.45 * alone


async def test_no_gain_no_connections(fd, autojump_clock):
    """The whole way is slow, not each connection: it stays one, and nothing that was fetched is thrown away."""
    source = FarServer(each=1e12, total=2 * MIB)
    seconds = await get(source, fd)
    assert source.most == 2
    last = source.opens[-1]
    assert last[2] is None  # one connection for the rest
    assert last[1] < len(DATA) / 2
    assert source.bytes_given <= len(DATA) + 2 * CHUNK
    assert seconds < 1.1 * len(DATA) / (2 * MIB)


async def test_two_are_enough(fd, autojump_clock):
    source = FarServer(each=1 * MIB, total=2 * MIB)
    await get(source, fd)
    assert source.most == 4
    late = [open_ for open_ in source.opens if open_[1] > len(DATA) / 2]
    assert late
    assert all(stop is not None for _, _, stop in late)


async def test_fast_connection_is_kept(fd, autojump_clock):
    source = FarServer(each=1.2 * FAST)
    source.images[URL] = FakeImage(DATA)
    await get(source, fd)
    assert source.opens == [(URL, 0, None)]


async def test_short_rest_is_not_worth_it(fd, autojump_clock):
    source = FarServer(each=len(DATA) / 4)  # after two seconds, two are left
    await get(source, fd)
    assert len(source.opens) == 1


@pytest.mark.parametrize("error", [RemoteUnavailableError("503"), RemoteChangedError("another mirror")])
async def test_refused_range(fd, autojump_clock, error):
    """A server that allows one connection only: the first goes on, and this is no failed attempt."""

    class OneOnly(FarServer):
        async def pass_by(self, url, start, stop):
            if self.open_now > 1:
                raise error
            await super().pass_by(url, start, stop)

    source = OneOnly(each=2 * MIB)
    await get(source, fd)
    assert source.opens[-1][2] is None


@pytest.mark.parametrize("at", [10 * MIB, 20 * MIB + 5, 40 * MIB])
async def test_broken_range(fd, autojump_clock, at):
    """What was received before the break is kept; the rest comes over one connection."""

    class Breaks(FarServer):
        broken = False

        async def pass_by(self, url, start, stop):
            if start <= at < stop and self.open_now > 1 and not self.broken:
                self.broken = True
                raise RemoteUnavailableError("the connection broke")
            await super().pass_by(url, start, stop)

    source = Breaks(each=2 * MIB)
    await get(source, fd)
    assert source.broken
    assert source.opens[-1][2] is None
    assert source.opens[-1][1] <= at + CHUNK
    assert source.bytes_given <= len(DATA) + 5 * 2 * MIB


async def test_ranges_wait_for_a_slow_one(fd, autojump_clock):
    """A connection that hangs does not let the others fill the memory."""

    class OneHangs(FarServer):
        hung_at, over, furthest = 0, False, 0

        async def pass_by(self, url, start, stop):
            if len(self.opens) >= 6 and not self.hung_at:
                self.hung_at = start
                await trio.sleep(60)
                self.over = True
            elif self.hung_at and not self.over:
                self.furthest = max(self.furthest, stop)
            await super().pass_by(url, start, stop)

    source = OneHangs(each=2 * MIB)
    await get(source, fd)
    assert 4 * MIB < source.furthest - source.hung_at <= 6 * 2.1 * MIB  # ranges of a second each


async def test_without_a_version_the_digest_decides(fd, autojump_clock):
    source = FarServer(each=2 * MIB)
    image = await source.stat(ImageUrl.parse(URL))
    source.images[URL] = FakeImage(DATA, version=None)
    growing_file = GrowingFile(fd, 1 << 30)
    await fetch(source, replace(image, version=None), growing_file, 3, lambda _: None, 4)
    assert source.most == 4
    assert growing_file.mixed


async def test_streams_with_tasks_of_their_own(fd, autojump_clock):
    """Streams of HTTP end a cancelled transfer with a nursery, and so with a group of Cancelled."""
    growing_file = GrowingFile(fd, 1 << 30)

    async def receive():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for end in range(MIB, 100 * MIB, MIB):
                await trio.sleep(0.5)
                growing_file.advance(end)

    rate = await unless_slow(growing_file, 100 * MIB, receive)
    assert MIB <= rate <= 3 * MIB


async def test_no_room(fd, autojump_clock):
    source = FarServer(each=2 * MIB)
    growing_file = GrowingFile(fd, 20 * MIB)
    with pytest.RaisesGroup(CacheFullError, flatten_subgroups=True):
        await fetch(source, await source.stat(ImageUrl.parse(URL)), growing_file, 3, lambda _: None, 4)
    assert source.open_now == 0
    assert os.fstat(fd).st_size <= 20 * MIB + CHUNK * 16


@pytest.mark.parametrize("seconds", [1.5, 2.5, 4.5, 7.5])
async def test_cancelled_at_once(fd, autojump_clock, seconds):
    source = FarServer(each=2 * MIB)
    growing_file = GrowingFile(fd, 1 << 30)
    began = trio.current_time()
    with trio.move_on_after(seconds) as scope:
        await fetch(source, await source.stat(ImageUrl.parse(URL)), growing_file, 3, lambda _: None, 4)
    assert scope.cancelled_caught
    assert trio.current_time() - began == pytest.approx(seconds, abs=0.1)
    assert source.open_now == 0
    available = growing_file.available
    assert os.pread(fd, 1 << 30, 0)[:available] == DATA[:available]
    assert os.fstat(fd).st_size == available  # nothing after a gap: the next start resumes here
