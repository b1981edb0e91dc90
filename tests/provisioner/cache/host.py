"""A cache with real files, threads and clock, and a fake source to download from."""

import hashlib
import subprocess
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from provisioner.cache import Expectation, ImageCache
from provisioner.config import CacheSettings
from provisioner.contracts import ByteSize, Checksum, ImageUrl
from provisioner.contracts.testing import FakeSource

SITE = "https://images.example.com"
URL = f"{SITE}/disk.raw"
DATA = b"some disk, not quite random" * 10_000  # 270 kB


@contextmanager
def append_only(folder):
    """Make a folder append-only: even root cannot remove files from it."""
    subprocess.run(["chattr", "+a", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-a", folder], check=True)


@contextmanager
def immutable(path):
    """Make a file immutable: even root can neither change nor remove it."""
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def sha(data, algorithm="sha256"):
    return Checksum(algorithm, hashlib.new(algorithm, data).hexdigest())


def many(count, size=100_000):
    """Return that many images of one server, by url."""
    return {f"{SITE}/{name}.raw": name.encode() * size for name in "abcdefghij"[:count]}


class Host:
    """A cache in a folder, which can be restarted."""

    def __init__(self, folder, images=None, **settings):
        self.folder = folder / "cache"
        self.source = FakeSource(images or {URL: DATA}, chunk_size=32 * 1024)
        self.settings = CacheSettings(**{"min_free": ByteSize(0), "download_attempts": 1, **settings})

    @asynccontextmanager
    async def running(self):
        self.cache = ImageCache(self.folder, self.settings)
        timed_out = True
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 20
            await nursery.start(self.cache.run)
            yield self.cache
            timed_out = nursery.cancel_scope.cancel_called
            nursery.cancel_scope.cancel()
        assert not timed_out, "the test timed out"

    async def expect(self, url=URL, checksum=None):
        return Expectation(remote=await self.source.stat(ImageUrl.parse(url)), checksum=checksum)

    async def get(self, url=URL, checksum=None):
        """Use an image like a job; return its entry and whether it was a cache hit."""
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
        assert not self.cache._catalog.users
        assert self.cache._downloads._by_key == {}
        links = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                links.append(str(link.readlink()))
        assert [name for name in links if name.startswith(str(self.folder)) and "sqlite" not in name] == []
