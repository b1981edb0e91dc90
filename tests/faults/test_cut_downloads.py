"""Tests of downloads over a network that cuts connections at random: each is exact, and none starts over."""

import hashlib
import random
from collections import Counter

import pytest
import trio

from lvp_source_http.settings import HttpSettings
from lvp_source_http.source import HttpSource
from provisioner.cache import Expectation, ImageCache
from provisioner.config import CacheSettings
from provisioner.contracts import MIB, BackEndContext, ByteSize, Checksum, ImageUrl
from tests.servers.cutting import cutting_proxy
from tests.servers.nginx import nginx

DOWNLOADS = 200
AT_ONCE = 4
SIZE = 16 * MIB


@pytest.fixture
def served(tmp_path):
    """Serve one image for each concurrent download from nginx; yield the server and the digests by name."""
    root = tmp_path / "root"
    root.mkdir()
    digests = {}
    for number in range(AT_ONCE):
        content = random.Random(number).randbytes(SIZE)
        (root / f"image-{number}.raw").write_bytes(content)
        digests[f"image-{number}.raw"] = hashlib.sha256(content).hexdigest()
    with nginx(root, tmp_path / "nginx") as server:
        yield server, digests


class Downloads:
    """Downloads one image after another through the cache and removes it again."""

    def __init__(self, cache: ImageCache, source: HttpSource, base: str) -> None:
        self.cache = cache
        self.source = source
        self.base = base
        self.left = DOWNLOADS
        self.done = Counter()

    async def work(self, name: str, digest: str) -> None:
        while self.left:
            self.left -= 1
            url = f"{self.base}/{name}"
            expectation = Expectation(remote=await self.stat(url), checksum=Checksum("sha256", digest))
            async with self.cache.image(self.source, expectation) as image:
                entry = await image.verified()
                assert not image.hit
                assert entry.sha256 == digest
            await self.cache.remove(digest)
            self.done[name] += 1

    async def stat(self, url):
        """Ask for the size and version, with retries, since these requests are cut too."""
        for _ in range(20):
            try:
                return await self.source.stat(ImageUrl.parse(url))
            except Exception as error:
                if not getattr(error, "temporary", False):
                    raise
        raise AssertionError("the server does not answer")


@pytest.mark.slow
async def test_cut_downloads_are_resumed(tmp_path, served):
    server, digests = served
    received = []
    upstream = int(server.url.rpartition(":")[2])
    # Four of five connections are cut, most of them well inside the image.
    with cutting_proxy(upstream, seed=20, cut_after=(MIB // 4, 15 * MIB), cut_share=0.8) as proxy:
        base = f"http://127.0.0.1:{proxy.port}"
        settings = HttpSettings(
            urls=[f"{base}/"], parallel_ranges=1
        )  # resuming is tested, not what a busy machine needs
        source = HttpSource(settings, BackEndContext("cut", tmp_path))
        cache = ImageCache(tmp_path / "cache", CacheSettings(min_free=ByteSize(0)), received.append)
        async with trio.open_nursery() as services:
            await services.start(cache.run)
            downloads = Downloads(cache, source, base)
            async with trio.open_nursery() as workers:
                for name, digest in digests.items():
                    workers.start_soon(downloads.work, name, digest)
            services.cancel_scope.cancel()
        await source.aclose()
    assert sum(downloads.done.values()) == DOWNLOADS
    assert proxy.cuts > DOWNLOADS // 2
    # No byte is downloaded twice: after a cut, only the rest is requested.
    assert sum(received) == DOWNLOADS * SIZE
    assert proxy.passed < 1.1 * DOWNLOADS * SIZE
    assert not any((tmp_path / "cache" / ".lvp" / "partial").iterdir())
