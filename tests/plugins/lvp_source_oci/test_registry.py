"""Tests of the source with a real registry."""

import hashlib
import json
import random

import pytest
import trio

from provisioner.cache import Expectation, ImageCache
from provisioner.config import CacheSettings
from provisioner.contracts import MIB, ByteSize, Checksum, ImageUrl, SecretRef
from provisioner.contracts.errors import ChecksumMismatchError, RemoteDeniedError, RemoteNotFoundError, SourceError
from provisioner.contracts.testing.source_suite import read
from tests.servers.cutting import cutting_proxy
from tests.servers.oci_registry import INDEX, PASSWORD, USER, container_disk, encoded

pytestmark = pytest.mark.slow  # a real registry

OLD, NEW = b"old disk" * 5000, b"new disk" * 6000


async def content(source, url, version=None):
    async with source.open(ImageUrl.parse(url), version=version) as stream:
        return await read(stream)


async def test_tag_and_digest(running, source_of):
    old = running.push("team/moving", "v1", OLD)
    source, base = source_of(running.host), f"//{running.host}/team/moving"
    image = await source.stat(ImageUrl.parse(f"docker:{base}:v1"))
    assert image.digest == Checksum("sha256", hashlib.sha256(OLD).hexdigest())
    assert image.pinned == ImageUrl.parse(f"docker:{base}@{old['digest']}")
    running.push("team/moving", "v1", NEW)
    assert await content(source, f"oci:{base}:v1") == NEW
    # A job that looked the tag up before goes on with what it found.
    assert await content(source, f"oci:{base}:v1", image.version) == OLD
    assert await content(source, f"oci:{base}@{old['digest']}") == OLD
    assert await content(source, image.pinned.text) == OLD
    assert (await source.stat(image.pinned)).pinned is None
    await source.aclose()


async def test_index(running, source_of):
    entries = [
        running.push("team/index", name, disk) | {"platform": {"os": "linux", "architecture": name}}
        for name, disk in (("amd64", OLD), ("arm64", NEW))
    ]
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    running.push_manifest("team/index", "v1", document)
    url = f"oci://{running.host}/team/index:v1"
    for architecture, disk in (("amd64", OLD), ("arm64", NEW)):
        source = source_of(running.host, architecture=architecture)
        pinned = (await source.stat(ImageUrl.parse(url))).pinned
        assert await content(source, pinned.text) == disk
        assert await content(source, url) == disk
        await source.aclose()
    source = source_of(running.host, architecture="s390x")
    with pytest.raises(SourceError, match="only for linux/amd64, linux/arm64"):
        await source.stat(ImageUrl.parse(url))
    await source.aclose()


async def test_container_disk_layer(running, source_of):
    layer = container_disk(OLD)
    running.push("team/vm", "v1", layer, media_type="application/vnd.oci.image.layer.v1.tar+gzip")
    source = source_of(running.host)
    assert await content(source, f"docker://{running.host}/team/vm:v1") == layer
    await source.aclose()


async def test_unusable_images(running, source_of):
    running.push("team/two", "v1", OLD, NEW)
    source = source_of(running.host)
    for name, kind, match in (
        ("team/two:v1", SourceError, "2 layers"),
        ("team/two:v2", RemoteNotFoundError, "no such tag or digest"),
        ("team/none:v1", RemoteNotFoundError, "no such"),
    ):
        with pytest.raises(kind, match=match):
            await source.stat(ImageUrl.parse(f"oci://{running.host}/{name}"))
    await source.aclose()


async def test_logins(guarded, source_of, tmp_path):
    guarded.push("team/image", "v1", OLD)
    url = f"oci://{guarded.host}/team/image:v1"
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "wrong").write_text("wrong")
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {guarded.host: {"auth": encoded(f"{USER}:{PASSWORD}")}}}))
    for settings in (
        {"username": USER, "password": SecretRef(f"file:{tmp_path}/password")},
        {"auth_file": SecretRef(f"file:{tmp_path}/auth.json")},
    ):
        source = source_of(guarded.host, **settings)
        assert await content(source, url) == OLD
        await source.aclose()
    for settings in ({}, {"username": USER, "password": SecretRef(f"file:{tmp_path}/wrong")}):
        source = source_of(guarded.host, **settings)
        with pytest.raises(RemoteDeniedError, match="credentials of source lab"):
            await source.stat(ImageUrl.parse(url))
        await source.aclose()


async def cached(cache, source, url):
    """Download an image through the cache; return its entry."""
    remote = await source.stat(ImageUrl.parse(url))
    async with cache.image(source, Expectation(remote=remote, checksum=remote.digest)) as image:
        return await image.verified()


async def test_resumed_after_a_cut(running, source_of, tmp_path):
    disk, received = random.Random(5).randbytes(12 * MIB), []
    running.push("team/cut", "v1", disk)
    # Three of four connections end within the image; manifests are smaller than what passes before a cut.
    upstream = int(running.host.rpartition(":")[2])
    with cutting_proxy(upstream, seed=3, cut_after=(MIB, 8 * MIB), cut_share=0.75) as proxy:
        source = source_of(f"127.0.0.1:{proxy.port}")
        cache = ImageCache(tmp_path / "cache", CacheSettings(min_free=ByteSize(0)), received.append)
        async with trio.open_nursery() as services:
            await services.start(cache.run)
            entry = await cached(cache, source, f"oci://127.0.0.1:{proxy.port}/team/cut:v1")
            services.cancel_scope.cancel()
        await source.aclose()
    assert entry.sha256 == hashlib.sha256(disk).hexdigest()
    assert proxy.cuts
    assert sum(received) == len(disk)


async def test_layer_that_differs_from_its_digest(running, source_of, tmp_path):
    wrong = running.push_blob("team/damaged", OLD)
    path = next(running.folder.glob(f"**/{wrong['digest'].partition(':')[2]}/data"))
    running.push("team/damaged", "v1", OLD)
    path.write_bytes(OLD[::-1])
    source = source_of(running.host)
    cache = ImageCache(tmp_path / "cache", CacheSettings(min_free=ByteSize(0)), lambda _count: None)
    async with trio.open_nursery() as services:
        await services.start(cache.run)
        with pytest.raises(ChecksumMismatchError):
            await cached(cache, source, f"oci://{running.host}/team/damaged:v1")
        services.cancel_scope.cancel()
    await source.aclose()
    path.write_bytes(OLD)
