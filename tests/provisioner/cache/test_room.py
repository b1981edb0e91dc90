"""Eviction: which images are evicted, and when there is no room."""

import os
import sqlite3
from contextlib import closing

import msgspec
import pytest
import trio

from provisioner.cache.entry import Entry
from provisioner.config import PrewarmSettings
from provisioner.contracts import ByteSize, Checksum
from provisioner.contracts.errors import CacheFullError, ConflictError, NotFoundError
from provisioner.contracts.testing import FakeImage
from tests.provisioner.cache.host import SITE, URL, Host, many, sha


async def test_evict_least_recently_used(tmp_path):
    host = Host(tmp_path, many(4), max_size=ByteSize(300_000))
    urls = list(host.source.images)
    async with host.running():
        for url in urls[:3]:
            await host.get(url)
        await host.get(urls[0])
        await host.get(urls[3])
        assert {entry.url for entry in host.cache.entries()} == {urls[2], urls[0], urls[3]}
        host.assert_clean([entry.file_name for entry in host.cache.entries()])


async def test_keep_pinned_or_in_use(tmp_path):
    host = Host(tmp_path, many(4), max_size=ByteSize(300_000))
    a, b, c, d = host.source.images
    async with host.running() as cache:
        pinned, _ = await host.get(a)
        await cache.pin(pinned.digest, pinned=True)
        async with host.using(b):
            await host.get(c)
            await host.get(d)
            assert {entry.url for entry in cache.entries()} == {a, b, d}
            assert [entry.url for entry in (await cache.prune()).entries] == [d]
            with pytest.raises(ConflictError, match="in use"):
                await cache.remove(sha(host.source.images[b].data).hex)
        assert [entry.url for entry in (await cache.prune()).entries] == [b]
        await cache.pin(pinned.digest, pinned=False)
        assert [entry.url for entry in (await cache.prune()).entries] == [a]
        host.assert_clean()
        with pytest.raises(NotFoundError):
            await cache.pin(pinned.digest, pinned=True)


async def test_prewarmed_images_are_pinned(tmp_path):
    """While they are configured, by url or by checksum; a client's own pin is separate."""
    host = Host(tmp_path, many(4), max_size=ByteSize(300_000))
    a, b, c, d = host.source.images
    checksum = str(sha(host.source.images[b].data))
    host.settings = msgspec.structs.replace(
        host.settings,
        prewarm=[PrewarmSettings(url=a), PrewarmSettings(url=f"{SITE}/elsewhere.raw", checksum=checksum)],
    )
    async with host.running() as cache:
        for url in (a, b, c, d):
            await host.get(url)
        assert {entry.url for entry in cache.entries()} == {a, b, d}
        kept = cache.prewarmed()
        assert {entry.url for entry in cache.entries() if entry.sha256 in kept} == {a, b}
        await cache.pin(sha(host.source.images[b].data).hex, pinned=True)
        await cache.pin(sha(host.source.images[a].data).hex, pinned=False)
        assert [entry.url for entry in (await cache.prune()).entries] == [d]
    async with host.running() as cache:
        assert (await cache.prune()).entries == []
    host.settings = msgspec.structs.replace(host.settings, prewarm=[])
    async with host.running() as cache:
        assert [entry.url for entry in (await cache.prune()).entries] == [a]
        assert [entry.pinned for entry in cache.entries()] == [True]


@pytest.mark.parametrize("versioned", [True, False])
async def test_prewarmed_image_is_replaced_by_a_newer_one(tmp_path, versioned):
    host = Host(tmp_path, many(1))
    (url,) = host.source.images
    host.settings = msgspec.structs.replace(host.settings, prewarm=[PrewarmSettings(url=url)])
    async with host.running() as cache:
        catalog = cache._catalog
        old, _ = await host.get(url)
        newer = msgspec.structs.replace(old, sha256="f" * 64, added_at=old.added_at + 1)
        if not versioned:
            catalog._urls.clear()
        catalog.add(newer, url, "2" if versioned else None)
        assert catalog.prewarmed() == {newer.sha256}
        catalog.forget(newer)


async def test_prewarmed_name_stands_for_a_newer_image(tmp_path):
    """The older image stays pinned until the newer one is in the cache."""
    host = Host(tmp_path, many(3))
    old, new, newest = host.source.images
    host.settings = msgspec.structs.replace(host.settings, prewarm=[PrewarmSettings(image="debian")])
    async with host.running() as cache:

        def pinned():
            return {entry.url for entry in cache.entries() if entry.sha256 in cache.prewarmed()}

        assert pinned() == set()
        cache.resolved("debian", old, None)
        await host.get(old)
        assert pinned() == {old}
        cache.resolved("debian", new, None)
        cache.resolved("debian", new, None)
        assert pinned() == {old}
        cache.resolved("debian", newest, None)  # the one in between never came
        assert pinned() == {old}
        await host.get(newest)
        assert pinned() == {newest}
        cache.resolved("other", old, None)
        assert pinned() == {newest}


async def test_pins_survive_a_restart(host):
    async with host.running():
        entry, _ = await host.get()
        await host.cache.pin(entry.digest, pinned=True)
    async with host.running():
        assert [entry.pinned for entry in host.cache.entries()] == [True]
        assert (await host.cache.prune()).entries == []


async def test_last_use_is_recorded_now_and_then(host, monkeypatch):
    """Every use counts at once for the next eviction; on disk it is recorded once a minute."""

    def recorded():
        with closing(sqlite3.connect(host.folder / ".lvp" / "index.sqlite")) as index:
            (body,) = index.execute("SELECT body FROM entries").fetchone()
        return msgspec.json.decode(body, type=Entry).last_used_at

    async def use():
        await host.get()
        (entry,) = host.cache.entries()
        return entry.last_used_at

    async with host.running():
        await host.get()
        first = await use()
        assert recorded() == first
        assert await use() > first
        assert recorded() == first
        monkeypatch.setattr("provisioner.cache.stored_images.RECORD_EVERY", 0.0)
        last = await use()
        assert recorded() == last > first
    async with host.running():
        assert [entry.last_used_at for entry in host.cache.entries()] == [last]


async def test_no_room_if_all_in_use(tmp_path):
    host = Host(tmp_path, many(2), max_size=ByteSize(150_000))
    a, b = host.source.images
    async with host.running():
        async with host.using(a):
            with pytest.raises(CacheFullError, match=r"no room for 0\.1 MiB"):
                await host.get(b)
            assert host.downloads == 1
        await host.get(b)


async def test_room_counts_downloads(tmp_path):
    """Two downloads fit alone but not together: the second one is rejected before it starts."""
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
        with pytest.raises(CacheFullError, match="min_free is"):
            await host.get()
        host.assert_clean()


@pytest.mark.parametrize("size", [None, 800_000])
async def test_image_over_the_limit(tmp_path, size):
    """It is rejected at once if the server announces its size, and otherwise stopped at the limit."""
    host = Host(tmp_path, {URL: FakeImage(b"x" * 800_000, size=size)}, max_size=ByteSize(400_000))
    async with host.running():
        with pytest.raises(CacheFullError):
            await host.get()
        assert host.source.bytes_given <= 450_000
        host.assert_clean()


async def test_unknown_size_evicts_gradually(tmp_path, monkeypatch):
    """Old entries are evicted as the image grows, and no more than necessary."""
    images = {**many(8), URL: FakeImage(b"x" * 350_000, size=None)}
    host = Host(tmp_path, images, max_size=ByteSize(800_000))
    host.source.chunk_size = 10_000
    monkeypatch.setattr("provisioner.download.growing_file.WAKE_STEP", 1)
    give = host.source.pass_by

    async def slowly(url, start, stop):  # slower than the eviction
        while url == URL and next(iter(host.cache._downloads._by_key.values())).growing_file.limit < stop + 40_000:
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


async def test_ten_thousand_entries(tmp_path):
    """Listing, lookup and eviction work with many entries."""
    host = Host(tmp_path, {URL: b"x" * 100}, max_size=ByteSize(1_000_000))
    async with host.running() as cache:
        cache._catalog._entries = {
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
        assert cache.find(Checksum("sha512", "0" * 128), "", None) is None
