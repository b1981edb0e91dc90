# ruff: noqa: ASYNC240 - small files of a test
"""Removal: an image that cannot be removed stays listed and counted, and the caller gets an error."""

import errno
import os
import threading
from pathlib import Path

import pytest
import trio

from provisioner.cache import cache as module
from provisioner.contracts import ByteSize
from provisioner.contracts.errors import CacheError, CacheFullError, TooManyRequestsError
from provisioner.contracts.testing import FakeImage
from tests.provisioner.cache.host import DATA, URL, Host, append_only, immutable, many, sha


async def test_remove_append_only_folder(host):
    async with host.running() as cache:
        entry, _ = await host.get(checksum=sha(DATA))
        with append_only(host.folder):
            with pytest.raises(CacheError, match="cannot be removed: Operation not permitted"):
                await cache.remove(entry.digest)
            assert cache.total_bytes == len(DATA)
            host.assert_clean([entry.file_name])
            assert (await host.get(checksum=sha(DATA)))[1]
        await cache.remove(entry.digest)
        host.assert_clean()
    async with host.running():
        host.assert_clean()


async def test_remove_io_error(host, monkeypatch):
    unlink = os.unlink

    def broken(path, **more):
        if str(path).startswith(str(host.folder / "disk")):
            raise OSError(errno.EIO, "Input/output error", path)
        unlink(path, **more)

    async with host.running() as cache:
        entry, _ = await host.get()
        monkeypatch.setattr(os, "unlink", broken)
        with pytest.raises(CacheError, match="Input/output error"):
            await cache.remove(entry.digest)
        host.assert_clean([entry.file_name])
    async with host.running() as cache:
        assert [found.sha256 for found in cache.entries()] == [entry.sha256]


async def test_prune_immutable_file(tmp_path):
    host = Host(tmp_path, many(3))
    async with host.running() as cache:
        entries = [(await host.get(url))[0] for url in host.source.images]
        with immutable(cache.path(entries[1])):
            with pytest.raises(CacheError, match="Operation not permitted; 2 other images were removed"):
                await cache.prune()
            host.assert_clean([entries[1].file_name])
        assert (await cache.prune()).freed == entries[1].size
        host.assert_clean()


async def test_evict_immutable_file(tmp_path):
    """The next image is evicted instead; only removed ones are counted."""
    evicted = []
    host = Host(tmp_path, many(4), max_size=ByteSize(300_000))
    a, b, c, d = host.source.images
    async with host.running() as cache:
        cache._space._evicted = evicted.append
        oldest, *_ = [(await host.get(url))[0] for url in (a, b, c)]
        with immutable(cache.path(oldest)):
            await host.get(d)
            assert {entry.url for entry in cache.entries()} == {a, c, d}
        assert sum(evicted) == 1
        assert cache.total_bytes == 300_000


async def test_evict_nothing_removable(tmp_path):
    host = Host(tmp_path, many(2), max_size=ByteSize(150_000))
    a, b = host.source.images
    async with host.running() as cache:
        entry, _ = await host.get(a)
        with append_only(host.folder), pytest.raises(CacheFullError, match="Operation not permitted"):
            await host.get(b)
        host.assert_clean([entry.file_name])
        await host.get(b)
        assert [entry.url for entry in cache.entries()] == [b]


async def test_damaged_file_cannot_be_removed(host):
    """It is not used but listed and counted, and the next download replaces it."""
    async with host.running() as cache:
        entry, _ = await host.get(checksum=sha(DATA))
        path = Path(cache.path(entry))
        rot(path)
        with append_only(host.folder), pytest.raises(CacheError, match="cannot be removed"):
            await cache.verify(entry.digest)
        host.assert_clean([entry.file_name])
        assert cache.find(sha(DATA), URL, None) is None
        again, hit = await host.get(checksum=sha(DATA))
        assert not hit
        assert path.read_bytes() == DATA
        assert cache.find(sha(DATA), URL, None) == again
        host.assert_clean([entry.file_name])


def rot(path):
    """Change the file's bytes but not its size and times."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"rot")
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


async def test_remove_index_not_writable(host):
    """The file and the entry are gone; the row is deleted with the next change or at the next start."""
    async with host.running() as cache:
        entry, _ = await host.get(checksum=sha(DATA))
        index = cache._files.index
        remove = index.remove

        def full(_digests):
            raise CacheFullError("the cache's file system is full")

        index.remove = full
        await cache.remove(entry.digest)
        host.assert_clean()
        index.remove = remove
        _, hit = await host.get(checksum=sha(DATA))  # the next change must not delete its row
        assert not hit
        await cache.prune()
        assert index.load()[0] == {}
        host.assert_clean()


async def test_prune_drops_urls_and_users(tmp_path):
    host = Host(tmp_path, many(5))
    async with host.running() as cache:
        for url in host.source.images:
            await host.get(url)
        assert cache._catalog.known_urls == 5
        await cache.prune()
        assert cache._catalog.known_urls == 0
        assert not cache._catalog.users
        assert cache._catalog._urls_of == {}


async def test_remove_url_of_newer_image(host):
    """Removing the old entry keeps the url; removing the current one drops it."""
    async with host.running() as cache:
        first, _ = await host.get()
        host.source.images[URL] = FakeImage(DATA + b"new", version="2")
        second, _ = await host.get()
        await cache.remove(first.digest)
        assert (await host.get())[1]
        await cache.remove(second.digest)
        assert cache._catalog.known_urls == 0


async def test_many_verifications(host):
    """Of 48 at once, two run, 16 wait and the others are rejected; short work never waits for them."""
    gate, started, results = threading.Event(), threading.Semaphore(0), []

    def sums_of(entry, check):
        started.release()
        gate.wait()
        return read(entry, check)

    async with host.running() as cache:
        entry, _ = await host.get()
        read, cache._files.sums_of = cache._files.sums_of, sums_of

        async def verify():
            try:
                results.append((await cache.verify(entry.digest))[1])
            except TooManyRequestsError:
                results.append("rejected")

        async with trio.open_nursery() as nursery:
            for _ in range(48):
                nursery.start_soon(verify)
            for _ in range(module.VERIFY_THREADS):
                await trio.to_thread.run_sync(started.acquire)
            limiter = trio.to_thread.current_default_thread_limiter()
            assert limiter.available_tokens == limiter.total_tokens
            assert await cache.check() is None
            gate.set()
        served = module.VERIFY_THREADS + module.VERIFY_QUEUE
        assert results.count(True) == served
        assert results.count("rejected") == 48 - served
        assert not cache._catalog.users[entry.sha256]


async def test_evict_partial_downloads_first(tmp_path):
    """A left-over partial download counts as used space and is removed before an image is evicted."""
    host = Host(tmp_path, many(2), max_size=ByteSize(250_000))
    a, b = host.source.images
    async with host.running() as cache:
        await host.get(a)
        left = host.folder / ".lvp" / "partial" / f"{'0' * 16}-{'1' * 16}-{'2' * 32}.{cache._files.partials._boot}.abcd"
        left.write_bytes(bytes(100_000))
    async with host.running() as cache:
        assert cache.total_bytes == 200_000
        await host.get(b)
        assert not left.exists()
        assert {entry.url for entry in cache.entries()} == {a, b}
        assert cache.total_bytes == 200_000


async def test_prune_partial_downloads(host):
    async with host.running() as cache:
        left = host.folder / ".lvp" / "partial" / f"{'0' * 16}-{'1' * 16}-{'2' * 32}.{cache._files.partials._boot}.abcd"
        left.write_bytes(bytes(1000))
    async with host.running() as cache:
        assert (await cache.prune()).freed == 1000
        assert not left.exists()
        assert cache.total_bytes == 0
