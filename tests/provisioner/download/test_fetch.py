"""Fetching over connections that break: pauses, resuming, and detecting changes on the server."""

import itertools
import os
from dataclasses import replace

import pytest
import trio
import trio.testing

from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import (
    CacheFullError,
    CorruptImageError,
    RemoteChangedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
)
from provisioner.contracts.testing import FakeImage, FakeSource
from provisioner.download.fetch import MIN_PROGRESS, OUTAGE, fetch
from provisioner.download.growing_file import GrowingFile
from provisioner.download.hashing import hash_and_inspect
from provisioner.download.retries import pause_after, with_retries

URL = "https://images.example.com/disk.raw"
DATA = bytes(range(256)) * 2048  # 512 KiB
FIRST = pause_after(1, lambda: 1.0)
DOWN = RemoteUnavailableError("the connection broke")


class Flaky(FakeSource):
    """A source that fails once at each offset in ``breaks``; after the first failure it serves ``then``, if given."""

    def __init__(self, image, breaks, then=None):
        super().__init__({URL: image}, chunk_size=16 * 1024)
        self.breaks, self.then = list(breaks), then

    async def pass_by(self, url, start, stop):
        if self.breaks and start <= self.breaks[0] < stop:
            self.breaks.pop(0)
            if self.then is not None:
                self.images[url] = self.then
            raise DOWN
        await super().pass_by(url, start, stop)


class StartsOver(Flaky):
    """A source that sends everything from the start, whatever it is asked for."""

    def open(self, url, start=0, stop=None, version=None):
        return super().open(url, 0, stop, version)


@pytest.fixture
def growing_file(tmp_path):
    """A factory: each test creates its GrowingFile inside the loop."""
    fd = os.open(tmp_path / "partial", os.O_RDWR | os.O_CREAT)
    yield lambda limit=1 << 30: GrowingFile(fd, limit)
    os.close(fd)


async def get(source, growing_file, attempts=3):
    got = []
    await fetch(source, await source.stat(ImageUrl.parse(URL)), growing_file, attempts, got.append)
    assert os.pread(growing_file.fd, 1 << 30, 0) == DATA
    assert growing_file.size == len(DATA)
    assert source.open_now == 0
    return sum(got)


def test_pause_after_doubles_up_to_cap():
    pauses = [pause_after(failures, lambda: 1.0) for failures in range(1, 20)]
    assert pauses[-1] == pauses[-2] == 30
    below = [pause for pause in pauses if pause < 30]
    assert below == [FIRST * 2**number for number in range(len(below))]
    assert pause_after(3, lambda: 0.0) == pauses[2] / 2


class Inline:
    """Runs the fakes' writes in the loop, because threads do not work with a mock clock."""

    @staticmethod
    async def run_sync(work, *args, **_):
        await trio.lowlevel.checkpoint()
        return work(*args)


@pytest.fixture
def no_threads(monkeypatch):
    monkeypatch.setattr("trio.to_thread", Inline)


async def test_fetch_resumes(growing_file, no_threads, autojump_clock):
    source = Flaky(FakeImage(DATA), [100_000, 300_000])
    assert await get(source, growing_file()) == len(DATA)  # no byte twice
    starts = [start for _, start, _ in source.opens]
    assert starts == [0, 98304, 294912]


async def test_fetch_progress_resets_attempts(growing_file, no_threads, autojump_clock):
    source = Flaky(FakeImage(DATA), range(70_000, 500_000, 80_000))
    began = trio.current_time()
    await get(source, growing_file(), attempts=2)
    assert len(source.opens) == 7
    assert 3 * FIRST <= trio.current_time() - began <= 6 * FIRST  # each pause is the first of a series


async def test_fetch_too_little_progress(growing_file, no_threads, autojump_clock):
    """A server that sends 1 KiB per connection exhausts the attempts; one that sends enough in total does not."""

    class Drips(FakeSource):
        async def pass_by(self, url, start, stop):
            if start >= self.opens[-1][1] + 1024:
                raise DOWN
            await super().pass_by(url, start, stop)

    source = Drips({URL: FakeImage(DATA)}, chunk_size=1024)
    made = growing_file()
    with pytest.raises(RemoteUnavailableError):
        await fetch(source, await source.stat(ImageUrl.parse(URL)), made, 5, lambda _: None)
    assert (len(source.opens), made.available) == (5, 5 * 1024)
    source.opens.clear()
    await get(source, made, attempts=MIN_PROGRESS // 1024 + 1)


async def test_fetch_gives_up(growing_file, no_threads, autojump_clock):
    """A server that breaks every connection is given up after some attempts."""
    source = FakeSource({URL: DATA}, fail_at={"read": DOWN})
    remote = await source.stat(ImageUrl.parse(URL))
    began = trio.current_time()
    with pytest.raises(RemoteUnavailableError):
        await fetch(source, remote, growing_file(), 4, lambda _: None)
    assert len(source.opens) == 4
    assert 3.5 * FIRST <= trio.current_time() - began <= 7 * FIRST


class Down(Flaky):
    """A source that breaks once and then answers nothing until ``up_at``."""

    def __init__(self, up_at):
        super().__init__(FakeImage(DATA), [100_000])
        self.up_at = up_at

    def _image(self, url):
        if self.opens[1:] and trio.current_time() < self.up_at:
            raise DOWN
        return super()._image(url)


async def test_fetch_survives_an_outage(growing_file, no_threads, autojump_clock):
    """Few attempts last for a restart of the server, too; one attempt is one."""
    source = Down(trio.current_time() + 40)
    assert await get(source, growing_file(), attempts=2) == len(DATA)
    assert [start for _, start, _ in source.opens][-1] == 98304


async def test_fetch_gives_up_a_server_that_is_down(growing_file, no_threads, autojump_clock):
    for attempts, seconds in ((2, OUTAGE), (1, 0)):
        source, began = FakeSource({URL: DATA}, fail_at={"open": DOWN}), trio.current_time()
        remote = await source.stat(ImageUrl.parse(URL))
        with pytest.raises(RemoteUnavailableError):
            await fetch(source, remote, growing_file(), attempts, lambda _: None)
        assert seconds <= trio.current_time() - began <= seconds + 30


async def test_retry_after(growing_file, no_threads, autojump_clock):
    """The server's own wish is followed, unless it would occupy a worker for too long."""
    for asked, pauses in (
        (45.0, [45.0]),
        (180.0, [180.0]),
        (181.0, []),
        (1e6, []),
        (None, [pytest.approx(FIRST, rel=0.6)]),
    ):
        busy, waits = [RemoteUnavailableError("busy", retry_after=asked)], []

        async def work(busy=busy):
            if busy:
                raise busy.pop()
            return trio.current_time()

        began = trio.current_time()
        try:
            waits.append(await with_retries(work, 3) - began)
        except RemoteUnavailableError:
            assert not pauses
        assert waits == pauses


@pytest.mark.parametrize("error", [RemoteNotFoundError("gone"), RemoteChangedError("new")])
async def test_fetch_permanent_error(growing_file, error):
    source = FakeSource({URL: DATA}, fail_at={"open": error})
    with pytest.raises(type(error)):
        await fetch(source, await source.stat(ImageUrl.parse(URL)), growing_file(), 5, lambda _: None)
    assert len(source.opens) == 1


@pytest.mark.parametrize(("ranges", "version"), [(False, "1"), (False, None)])
async def test_fetch_without_ranges(growing_file, no_threads, autojump_clock, ranges, version):
    """The image is requested from the start again; known bytes are compared, the rest is written."""
    source = Flaky(FakeImage(DATA, version=version, accepts_ranges=ranges), [200_000])
    await get(source, growing_file())
    assert [start for _, start, _ in source.opens] == [0, 0]


@pytest.mark.parametrize("announces", [True, False])
async def test_fetch_cut_each_time_without_ranges(growing_file, no_threads, autojump_clock, announces):
    """Each attempt repeats the bytes of the earlier ones, so getting further is no reason for another attempt.

    A server may also announce ranges and then send everything from the start.
    """
    source = StartsOver(FakeImage(DATA, accepts_ranges=announces), range(70_000, 500_000, 80_000))
    remote, made = await source.stat(ImageUrl.parse(URL)), growing_file()
    words = (
        "the connection broke; the server can only start over .* 3 attempts got no further than byte 229376 of 524288"
    )
    with pytest.raises(RemoteUnavailableError, match=words):
        await fetch(source, remote, made, 3, lambda _: None)
    assert len(source.opens) == 3


@pytest.mark.parametrize("where", [0, 150_000, 196_607])
async def test_fetch_changed_beginning(growing_file, no_threads, autojump_clock, where):
    """A change of one byte that was already hashed is detected."""
    forged = bytearray(DATA)
    forged[where] ^= 1
    image = FakeImage(DATA, version=None, accepts_ranges=False)
    source = Flaky(image, [200_000], then=replace(image, data=bytes(forged)))
    made = growing_file()
    with pytest.raises(RemoteChangedError, match="changed on the server"):
        await fetch(source, await source.stat(ImageUrl.parse(URL)), made, 5, lambda _: None)
    assert made.size is None
    assert os.pread(made.fd, 150_001, 0) == DATA[:150_001]


async def test_fetch_shorter_second_response(growing_file, no_threads, autojump_clock):
    """Without an announced size, the end of the second response is not the end of the first one."""
    image = FakeImage(DATA, version=None, size=None, accepts_ranges=False)
    source = Flaky(image, [200_000], then=replace(image, data=DATA[:50_000]))
    with pytest.raises(RemoteChangedError, match="announced"):
        await fetch(source, await source.stat(ImageUrl.parse(URL)), growing_file(), 5, lambda _: None)


@pytest.mark.parametrize(("announced", "words"), [(len(DATA) - 1, "sends more"), (len(DATA) + 1, "but sent")])
async def test_fetch_wrong_announced_size(growing_file, announced, words):
    source = FakeSource({URL: FakeImage(DATA, size=announced)})
    with pytest.raises(RemoteChangedError, match=words):
        await fetch(source, await source.stat(ImageUrl.parse(URL)), growing_file(), 5, lambda _: None)


async def test_fetch_endless_body(growing_file):
    source = FakeSource({URL: FakeImage(DATA, size=None)}, chunk_size=1000)
    made = growing_file(limit=100_000)
    with pytest.raises(CacheFullError, match=r"larger than the 0\.1 MiB"):
        await fetch(source, await source.stat(ImageUrl.parse(URL)), made, 5, lambda _: None)
    assert os.fstat(made.fd).st_size <= 101_000


# --- waiting for bytes ---


async def test_arrived_wakes_in_time(growing_file):
    made, seen = growing_file(), []

    async def wait_for(stop):
        await made.arrived(0, stop)
        seen.append((stop, made.available))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, 10)
        nursery.start_soon(wait_for, 5 << 20)
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(made.advance, 3 << 20)
        await trio.testing.wait_all_tasks_blocked()
        assert [stop for stop, _ in seen] == [10]
        await trio.to_thread.run_sync(made.advance, 6 << 20)
    assert [stop for stop, _ in seen] == [10, 5 << 20]


async def test_arrived_past_the_end(growing_file):
    """Also after the download has ended."""
    made = growing_file()
    made.advance(100)
    made.finish()
    made.fail(RuntimeError("given up"))
    with pytest.raises(CorruptImageError, match="ends at byte 100, but byte 199 is needed"):
        await made.arrived(0, 200)
    await made.arrived(50, 100)
    await made.completed()


async def test_fail_reaches_all_waiters(growing_file):
    made = growing_file()
    for wait in (lambda: made.arrived(0, 1), made.completed, lambda: trio.to_thread.run_sync(made.wait_beyond, 0, 1)):
        async with trio.open_nursery() as nursery:
            with pytest.RaisesGroup(RemoteNotFoundError) as caught:
                async with trio.open_nursery() as inner:
                    inner.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    made.fail(RemoteNotFoundError("first"))
                    made.fail(RemoteUnavailableError("second"))
            assert "first" in str(caught.value.exceptions[0])
            nursery.cancel_scope.cancel()


async def test_advance_after_loop_ended(tmp_path):
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)

    async def make():
        return GrowingFile(fd, 1 << 30)

    made = await trio.to_thread.run_sync(trio.run, make)
    made.advance(5 << 20)
    made.finish()
    os.close(fd)


# --- hashing ---


@pytest.mark.parametrize("size", [0, 1, 511, 64 * 1024, 3 * 1024 * 1024 + 1])
async def test_hash_growing_file(tmp_path, growing_file, size):
    """The digest covers all bytes, and the inspection's result is reported once."""
    import hashlib

    data = os.urandom(size) if size else b""
    made, reported, digests = growing_file(), [], {}

    async def hash_it():
        hashes = await trio.to_thread.run_sync(hash_and_inspect, made, {"sha256", "sha512"}, reported.append)
        digests.update(hashes.digests)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hash_it)
        for start in itertools.chain(range(0, size, 700_001)):
            stop = min(size, start + 700_001)
            os.pwrite(made.fd, data[start:stop], start)
            made.advance(stop)
            await trio.lowlevel.checkpoint()
        made.finish()
    assert digests == {name: hashlib.new(name, data).hexdigest() for name in ("sha256", "sha512")}
    assert [info.format for info in reported] == ["raw"]


async def test_hash_failed_download(growing_file):
    """Hashing stops at once; it does not read the rest of the file first."""
    made = growing_file()
    os.truncate(made.fd, 1 << 29)
    made.advance(1 << 29)
    made.fail(RemoteUnavailableError("gone"))
    with pytest.raises(RemoteUnavailableError):
        await trio.to_thread.run_sync(hash_and_inspect, made, {"sha256"}, lambda _: None)


async def test_hash_truncated_file(growing_file):
    made = growing_file()
    os.pwrite(made.fd, b"x" * 10, 0)
    made.advance(20)
    made.finish()
    with pytest.raises(CorruptImageError, match="was truncated"):
        await trio.to_thread.run_sync(hash_and_inspect, made, {"sha256"}, lambda _: None)
