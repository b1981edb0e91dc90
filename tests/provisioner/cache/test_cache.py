# ruff: noqa: ASYNC240 - small files of a test
"""The cache with real files, threads and clock: what it publishes, shares, evicts, and finds again."""

import hashlib
import os
import subprocess
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from provisioner.cache import Expectation, ImageCache
from provisioner.cache.entry import Entry
from provisioner.config import CacheSettings
from provisioner.contracts import MIB, ByteSize, Checksum
from provisioner.contracts.errors import (
    CacheError,
    CacheFullError,
    ChecksumMismatchError,
    ConflictError,
    NotFoundError,
    RemoteChangedError,
    RemoteUnavailableError,
    UnsafeImageError,
)
from provisioner.contracts.testing import FakeImage, FakeSource

SITE = "https://images.example.com"
URL = f"{SITE}/disk.raw"
DATA = b"some disk, not quite random" * 10_000  # 270 kB


def sha(data, algorithm="sha256"):
    return Checksum(algorithm, hashlib.new(algorithm, data).hexdigest())


class Host:
    """A cache in a folder, made anew at will."""

    def __init__(self, folder, images=None, **settings):
        self.folder = folder / "cache"
        self.source = FakeSource(images or {URL: DATA}, chunk_size=32 * 1024)
        self.settings = CacheSettings(**{"min_free": ByteSize(0), "download_attempts": 1, **settings})

    @asynccontextmanager
    async def running(self):
        self.cache = ImageCache(self.folder, self.settings)
        in_vain = True
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 20
            await nursery.start(self.cache.run)
            yield self.cache
            in_vain = nursery.cancel_scope.cancel_called
            nursery.cancel_scope.cancel()
        assert not in_vain, "the test waited for what did not come"

    async def expect(self, url=URL, checksum=None):
        return Expectation(remote=await self.source.stat(url), checksum=checksum)

    async def get(self, url=URL, checksum=None):
        """The entry and whether it was a hit, after a use like a job's."""
        async with self.cache.image(self.source, await self.expect(url, checksum)) as image:
            entry = await image.verified()
            return entry, image.hit

    @asynccontextmanager
    async def using(self, url=URL, checksum=None):
        async with self.cache.image(self.source, await self.expect(url, checksum)) as image:
            await image.verified()
            yield image

    def files(self):
        return sorted(path.name for path in self.folder.iterdir() if path.name != ".lvp")

    def partials(self):
        return [path.name for path in (self.folder / ".lvp" / "partial").iterdir()]

    @property
    def downloads(self):
        return len(self.source.opens)

    def assert_clean(self, names=()):
        assert self.partials() == []
        assert self.files() == sorted(names)
        assert sorted(entry.file_name for entry in self.cache.entries()) == sorted(names)
        assert not any(self.cache._users.values())
        assert self.cache._flights._by_key == {}
        links = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                links.append(str(link.readlink()))
        assert [name for name in links if name.startswith(str(self.folder)) and "sqlite" not in name] == []


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# --- publishing ---


async def test_an_image_is_published_read_only_and_found_again(host):
    async with host.running():
        entry, hit = await host.get(checksum=sha(DATA))
        assert not hit
        assert (await host.get(checksum=sha(DATA)))[1]
        assert host.downloads == 1
        path = Path(host.cache.path(entry))
        assert path.read_bytes() == DATA
        assert path.stat().st_mode & 0o777 == 0o444
        assert (entry.format, entry.size, entry.virtual_size, entry.url) == ("raw", len(DATA), len(DATA), URL)
        host.assert_clean([entry.file_name])


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_nothing_is_published_that_does_not_match(host, algorithm):
    async with host.running():
        with pytest.raises(ChecksumMismatchError, match=algorithm):
            await host.get(checksum=sha(b"another", algorithm))
        host.assert_clean()


async def test_nothing_is_seen_of_an_image_before_its_digest_matched(host):
    """Bytes may be read while they come; the name appears at the end."""
    host.source.at_byte, host.source.steps.hang_at = len(DATA) - 1, "byte"
    async with host.running():
        async with host.cache.image(host.source, await host.expect(checksum=sha(DATA))) as image:
            await host.source.steps.reached.wait()
            view = image.view("raw", len(DATA))
            await view.arrived(0, 1000)
            assert os.pread(view.fd, 1000, 0) == DATA[:1000]
            assert host.files() == []
            assert host.cache.entries() == []
        host.assert_clean()


async def test_an_unsafe_image_ends_the_download_at_its_header(tmp_path):
    bad = (b"LUKS\xba\xbe\0\x01" + bytes(1000)).ljust(32 * MIB, b"x")
    host = Host(tmp_path, {URL: bad})
    async with host.running():
        with pytest.raises(UnsafeImageError):
            async with host.cache.image(host.source, await host.expect(checksum=sha(bad))) as image:
                await image.info()
        assert host.source.bytes_given < len(bad)
        host.assert_clean()


async def test_a_sha512_is_enough(host):
    """The entry is found by it, and by the sha256 nobody gave, and is one."""
    async with host.running():
        entry, _ = await host.get(checksum=sha(DATA, "sha512"))
        assert entry.sha256 == sha(DATA).hex
        assert (await host.get(checksum=sha(DATA)))[1]
        assert (await host.get(checksum=sha(DATA, "sha512")))[1]
        assert host.downloads == 1


async def test_a_sha512_is_learnt_of_an_image_that_is_there(host):
    async with host.running():
        await host.get(checksum=sha(DATA))
        entry, hit = await host.get(checksum=sha(DATA, "sha512"))
        assert not hit
        assert entry.sha512 == sha(DATA, "sha512").hex
        assert (await host.get(checksum=sha(DATA, "sha512")))[1]
        host.assert_clean([entry.file_name])


async def test_without_a_checksum_the_version_tells(host):
    async with host.running():
        first, _ = await host.get()
        again, hit = await host.get()
        assert hit
        assert again.sha256 == first.sha256
        host.source.images[URL] = FakeImage(DATA + b"new", version="2")
        second, hit = await host.get()
        assert not hit
        assert second.sha256 == sha(DATA + b"new").hex
    async with host.running():
        assert (await host.get())[1]


async def test_without_checksum_and_version_it_is_fetched_each_time(tmp_path):
    host = Host(tmp_path, {URL: FakeImage(DATA, version=None)})
    async with host.running():
        entry, _ = await host.get()
        again, hit = await host.get()
        assert not hit
        assert again.sha256 == entry.sha256
        host.assert_clean([entry.file_name])


@pytest.mark.parametrize("size", [None, 1, len(DATA) - 1, len(DATA) + 1])
async def test_sizes_that_are_unknown_or_lie(tmp_path, size):
    host = Host(tmp_path, {URL: FakeImage(DATA, size=size)})
    async with host.running():
        if size is None:
            entry, _ = await host.get(checksum=sha(DATA))
            assert entry.size == len(DATA)
        else:
            with pytest.raises(RemoteChangedError):
                await host.get(checksum=sha(DATA))
            host.assert_clean()


# --- one download for all ---


async def wait_for_users(cache, count):
    while sum(flight.users for flight in cache._flights._by_key.values()) != count:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("leaving", [(), (0,), (1,), (0, 1)], ids=["nobody", "first", "second", "both"])
async def test_two_jobs_share_a_download(host, leaving):
    """It goes on as long as one of them is there; when both have left, it ends and its file is gone."""
    host.source.at_byte, host.source.steps.hang_at = len(DATA) // 2, "byte"
    scopes, got = [trio.CancelScope(), trio.CancelScope()], []

    async def job(number):
        with scopes[number]:
            got.append((number, (await host.get(checksum=sha(DATA)))[0].sha256))

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job, 0)
            await host.source.steps.reached.wait()
            nursery.start_soon(job, 1)
            await wait_for_users(host.cache, 2)
            for number in leaving:
                scopes[number].cancel()
            await wait_for_users(host.cache, 2 - len(leaving))
            while len(leaving) == 2 and host.source.open_now:
                await trio.lowlevel.checkpoint()
            assert host.source.open_now == (1 if len(leaving) < 2 else 0)
            nursery.cancel_scope.cancel()
        assert host.downloads == 1
        host.assert_clean()


async def test_two_jobs_share_a_download_to_its_end(host):
    async with host.running():
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(host.get, URL, sha(DATA))
        assert host.downloads == 1
        assert host.source.bytes_given == len(DATA)


async def test_the_first_leaves_and_the_second_has_it(tmp_path):
    """The download is nobody's own: it survives the job that began it."""
    host, gate = Host(tmp_path), trio.Event()
    give = host.source.pass_by

    async def pass_by(url, start, stop):
        if start > len(DATA) // 2:
            await gate.wait()
        await give(url, start, stop)

    host.source.pass_by = pass_by
    scope, got = trio.CancelScope(), []

    async def first():
        with scope:
            await host.get(checksum=sha(DATA))

    async def second():
        got.append(await host.get(checksum=sha(DATA)))

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await wait_for_users(host.cache, 1)
            nursery.start_soon(second)
            await wait_for_users(host.cache, 2)
            scope.cancel()
            await wait_for_users(host.cache, 1)
            gate.set()
        assert got[0][0].sha256 == sha(DATA).hex
        assert host.downloads == 1
        host.assert_clean([got[0][0].file_name])


async def test_boarding_while_the_last_one_leaves(host):
    """The newcomer gets a download of its own rather than the one that is being given up."""
    host.source.at_byte, host.source.steps.hang_at = len(DATA) // 2, "byte"
    scope, got = trio.CancelScope(), []

    async def leaver():
        with scope:
            await host.get(checksum=sha(DATA))

    async def newcomer():
        got.append(await host.get(checksum=sha(DATA)))

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver)
            await host.source.steps.reached.wait()
            host.source.steps.hang_at = None
            scope.cancel()
            nursery.start_soon(newcomer)
        assert not got[0][1]
        host.assert_clean([got[0][0].file_name])


async def test_a_checksum_does_not_tie_one_job_to_another_s_server(tmp_path):
    """Same digest, other url: the one that hangs or lies is not everybody's."""
    other = f"{SITE}/mirror/disk.raw"
    host = Host(tmp_path, {URL: b"a lie", other: DATA})
    async with host.running():
        results = []

        async def job(url):
            try:
                results.append((await host.get(url, sha(DATA)))[0].sha256)
            except ChecksumMismatchError:
                results.append("mismatch")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(job, URL)
            nursery.start_soon(job, other)
        assert sorted(results) == sorted(["mismatch", sha(DATA).hex])


async def test_many_downloads_at_once_do_not_starve_each_other(tmp_path):
    """More of them than trio has threads: those that hash must not keep out those that write."""
    images = {f"{SITE}/{number}.raw": DATA[number:] for number in range(60)}
    host, give = Host(tmp_path, images), None

    async def when_all_are_under_way(url, start, stop):
        while len(host.cache._flights._by_key) < 60 and not host.cache.entries():
            await trio.lowlevel.checkpoint()
        await give(url, start, stop)

    give, host.source.pass_by = host.source.pass_by, when_all_are_under_way
    async with host.running():
        async with trio.open_nursery() as nursery:
            for url in images:
                nursery.start_soon(host.get, url)
        assert len(host.cache.entries()) == 60


async def test_a_failed_download_fails_all_its_jobs_and_is_tried_again_by_the_next(host):
    host.source.at_byte, host.source.steps.fail_at = 100_000, {"byte": RemoteUnavailableError("gone")}
    failed = []

    async def job():
        with pytest.raises(RemoteUnavailableError):
            await host.get(checksum=sha(DATA))
        failed.append(1)

    async with host.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(job)
            nursery.start_soon(job)
        assert len(failed) == 2
        assert host.downloads == 1
        host.assert_clean()
        host.source.steps.fail_at = {}
        assert not (await host.get(checksum=sha(DATA)))[1]


# --- room ---


def many(count, size=100_000):
    return {f"{SITE}/{name}.raw": name.encode() * size for name in "abcdefghij"[:count]}


async def test_the_least_recently_used_goes_first(tmp_path):
    host = Host(tmp_path, many(4), max_size=ByteSize(300_000))
    urls = list(host.source.images)
    async with host.running():
        for url in urls[:3]:
            await host.get(url)
        await host.get(urls[0])
        await host.get(urls[3])
        assert {entry.url for entry in host.cache.entries()} == {urls[2], urls[0], urls[3]}
        host.assert_clean([entry.file_name for entry in host.cache.entries()])


async def test_what_is_pinned_or_in_use_stays(tmp_path):
    host = Host(tmp_path, many(4), max_size=ByteSize(300_000))
    a, b, c, d = host.source.images
    async with host.running() as cache:
        pinned, _ = await host.get(a)
        await cache.pin(pinned.digest, pinned=True)
        async with host.using(b):
            await host.get(c)
            await host.get(d)
            assert {entry.url for entry in cache.entries()} == {a, b, d}
            assert [entry.url for entry in await cache.prune()] == [d]
            with pytest.raises(ConflictError, match="in use"):
                await cache.remove(sha(host.source.images[b].data).hex)
        assert [entry.url for entry in await cache.prune()] == [b]
        await cache.pin(pinned.digest, pinned=False)
        assert [entry.url for entry in await cache.prune()] == [a]
        host.assert_clean()
        with pytest.raises(NotFoundError):
            await cache.pin(pinned.digest, pinned=True)


async def test_pins_survive_a_restart(host):
    async with host.running():
        entry, _ = await host.get()
        await host.cache.pin(entry.digest, pinned=True)
    async with host.running():
        assert [entry.pinned for entry in host.cache.entries()] == [True]
        assert await host.cache.prune() == []


async def test_when_everything_is_in_use_there_is_no_room(tmp_path):
    host = Host(tmp_path, many(2), max_size=ByteSize(150_000))
    a, b = host.source.images
    async with host.running():
        async with host.using(a):
            with pytest.raises(CacheFullError, match="no room for 100000 bytes"):
                await host.get(b)
            assert host.downloads == 1
        await host.get(b)


async def test_room_counts_what_is_still_coming(tmp_path):
    """Two downloads that fit one by one and not together: the second is refused before a byte of it comes."""
    host = Host(tmp_path, many(2), max_size=ByteSize(150_000))
    a, b = host.source.images
    host.source.at_byte, host.source.steps.hang_at = 50_000, "byte"
    async with host.running(), trio.open_nursery() as nursery:
        nursery.start_soon(host.get, a)
        await host.source.steps.reached.wait()
        with pytest.raises(CacheFullError):
            await host.get(b)
        nursery.cancel_scope.cancel()


async def test_min_free_is_kept(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    host = Host(tmp_path, min_free=ByteSize(free * 2))
    async with host.running():
        with pytest.raises(CacheFullError, match="min_free keeps"):
            await host.get()
        host.assert_clean()


@pytest.mark.parametrize("size", [None, 800_000])
async def test_a_body_over_the_limit(tmp_path, size):
    """Refused at once where the server says so; else ended where the room does."""
    host = Host(tmp_path, {URL: FakeImage(b"x" * 800_000, size=size)}, max_size=ByteSize(400_000))
    async with host.running():
        with pytest.raises(CacheFullError):
            await host.get()
        assert host.source.bytes_given <= 450_000
        host.assert_clean()


async def test_an_image_of_unknown_size_makes_room_as_it_grows(tmp_path, monkeypatch):
    """Old entries go while it comes, no more of them than it needs."""
    images = {**many(8), URL: FakeImage(b"x" * 350_000, size=None)}
    host = Host(tmp_path, images, max_size=ByteSize(800_000))
    host.source.chunk_size = 10_000
    monkeypatch.setattr("provisioner.download.arrival.WAKE_STEP", 1)
    give = host.source.pass_by

    async def slowly(url, start, stop):  # slower than room can be made
        while url == URL and next(iter(host.cache._flights._by_key.values())).arrival.limit < stop + 40_000:
            await trio.lowlevel.checkpoint()
        await give(url, start, stop)

    host.source.pass_by = slowly
    async with host.running():
        for url in list(many(8)):
            await host.get(url)
        entry, _ = await host.get()
        assert entry.size == 350_000
        kept = {found.url for found in host.cache.entries()}
        assert len(kept) >= 4
        assert host.cache.total_bytes <= 800_000


# --- what is on disk is the truth ---


def damage(path):
    path.chmod(0o644)
    path.write_bytes(b"tampered with")


@pytest.mark.parametrize(
    "harm", [Path.unlink, damage, lambda path: os.utime(path, (1, 1))], ids=["gone", "changed", "touched"]
)
@pytest.mark.parametrize("restart", [False, True])
async def test_a_file_that_is_not_the_published_one_is_never_used(host, harm, restart):
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
            again, _ = await host.get(checksum=sha(DATA))  # touched, its bytes are hashed anew and found right
    assert path.read_bytes() == DATA
    assert again.sha256 == entry.sha256


async def test_a_link_in_an_image_s_place_is_not_followed(host):
    async with host.running():
        entry, _ = await host.get(checksum=sha(DATA))
        path = Path(host.cache.path(entry))
        path.unlink()
        path.symlink_to("/etc/passwd")
        assert not (await host.get(checksum=sha(DATA)))[1]
        assert not path.is_symlink()


@pytest.mark.parametrize("loss", ["deleted", "garbage", "middle", "empty"])
async def test_a_lost_index_is_made_again_from_the_files(tmp_path, loss):
    """Hashed anew; a file whose bytes are not what its name says, and one that is not ours, are left alone."""
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


async def test_a_row_of_another_version_is_made_again(host):
    import sqlite3

    async with host.running():
        entry, _ = await host.get()
    db = sqlite3.connect(host.folder / ".lvp" / "index.sqlite")
    with db:
        db.execute("UPDATE entries SET body = '{\"other\": 1}'")
    db.close()
    async with host.running():
        assert [found.sha256 for found in host.cache.entries()] == [entry.sha256]


async def test_a_directory_that_cannot_be_used_is_said(tmp_path):
    host = Host(tmp_path)
    host.folder.write_text("a file")
    with pytest.RaisesGroup(CacheError, allow_unwrapped=True, flatten_subgroups=True):
        async with host.running():
            pass


# --- a full disk ---


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "lvp-test", where], check=True)
    yield where
    subprocess.run(["umount", "-l", where], check=True)


async def test_a_full_disk_is_a_clean_error(small_disk):
    """Whatever reason the room was misjudged for: the job fails, the cache is as before, and works on."""
    host = Host(small_disk, {URL: DATA, f"{SITE}/big.raw": FakeImage(b"x" * (8 * MIB))})
    async with host.running() as cache:
        entry, _ = await host.get(checksum=sha(DATA))

        async def no_room(_wanted):
            await trio.lowlevel.checkpoint()

        cache._flights._make_room = no_room
        with pytest.raises(CacheFullError, match="full"):
            await host.get(f"{SITE}/big.raw")
        host.assert_clean([entry.file_name])
        assert (await host.get(checksum=sha(DATA)))[1]


async def test_a_disk_that_is_full_at_publishing(small_disk):
    """The index cannot be written: no file is left that it does not know. And what is cached can still be used."""
    host = Host(small_disk, {URL: DATA, f"{SITE}/other.raw": DATA[::-1]})
    async with host.running() as cache:
        entry, _ = await host.get(checksum=sha(DATA))
        publish = cache._files.publish

        def publish_on_a_full_disk(*arguments):
            filler = small_disk / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(b"x" * 4096)
            return publish(*arguments)

        cache._files.publish = publish_on_a_full_disk
        with pytest.raises(CacheFullError, match="full"):
            await host.get(f"{SITE}/other.raw")
        host.assert_clean([entry.file_name])
        assert (await host.get(checksum=sha(DATA)))[1]
    async with host.running():
        assert [found.sha256 for found in host.cache.entries()] == [entry.sha256]


# --- ten thousand entries ---


async def test_ten_thousand_entries(tmp_path):
    """They are listed, found and evicted."""
    host = Host(tmp_path, {URL: b"x" * 100}, max_size=ByteSize(1_000_000))
    async with host.running() as cache:
        cache._entries = {
            f"{number:064x}": Entry(
                sha256=f"{number:064x}", sha512=None, file_name=f"i-{number:012x}.raw", size=100, mtime_ns=0,
                format="raw", virtual_size=100, url="", added_at=0, last_used_at=number,
            )
            for number in range(10_000)
        }  # fmt: skip
        newest = cache.entries()[:100]
        await cache.make_room(50 * 100)
        assert newest[0].last_used_at == 9999
        assert min(entry.last_used_at for entry in cache.entries()) == 50
        assert cache._find_digest(Checksum("sha512", "0" * 128)) is None


@pytest.mark.parametrize("honest", [True, False])
async def test_an_image_whose_early_part_was_another_s_is_not_published(tmp_path, monkeypatch, honest):
    """A server that has one table for the converter and another one for the digest."""
    monkeypatch.setattr("provisioner.download.early.NEAR", 0)
    halfway, read = trio.Event(), trio.Event()

    class Server(FakeSource):
        async def pass_by(self, url, start, stop):
            if start == len(DATA) // 2:
                halfway.set()
                await read.wait()

        @asynccontextmanager
        async def open(self, url, start=0, stop=None, version=None):
            async with super().open(url, start, stop, version) as stream:
                if stop is not None and not honest:
                    stream._image = self.images[url] = FakeImage(bytes(len(DATA)))
                yield stream
                self.images[url] = whole

    host = Host(tmp_path)
    whole = FakeImage(DATA)
    host.source = Server({URL: whole}, chunk_size=len(DATA) // 10)
    async with host.running():
        async with host.cache.image(host.source, await host.expect(checksum=sha(DATA))) as image:
            await halfway.wait()
            view = image.view("raw", len(DATA))
            part = await view.ahead(len(DATA) - 512, len(DATA))
            assert (part == DATA[-512:]) is honest
            read.set()
            if honest:
                assert (await image.verified()).sha256 == sha(DATA).hex
            else:
                with pytest.raises(RemoteChangedError, match="other bytes"):
                    await image.verified()
        assert len(host.files()) == honest
