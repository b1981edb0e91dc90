"""Tests of compressed images: the volume has the decompressed image, the cache the compressed one; bombs fail."""

import bz2
import gzip
import lzma

import pytest
import zstandard

from tests.end_to_end.conftest import same, vouch

pytestmark = pytest.mark.slow

PACKERS = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress, "bz2": bz2.compress}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("inside", ["sparse.raw", "zlib.qcow2"])
def test_compressed_image(daemon, server, images, inside, packing):
    image = images[inside]
    packed = image.file.with_name(f"{inside}.{packing}")
    packed.write_bytes(PACKERS[packing](image.file.read_bytes()))
    vouch(packed)
    for name in ("first", "second"):
        job = daemon.job_ended(daemon.submit(server.of(packed.name), name, image.kind))
        assert job["status"] == "completed", job
        assert same(image, daemon.volume(name))
    assert job["cache_hit"]
    assert job["image_path"].endswith(f".{image.kind}.{packing}")
    (cached,) = daemon.call("GET", "/api/v1/cache/images").json()["images"]
    assert (cached["compression"], cached["size"]) == (packing, packed.stat().st_size)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bomb.raw.gz", gzip.compress(bytes(1025 * 2**20), 1), "decompresses to more than"),
        ("cut.raw.xz", lzma.compress(bytes(2**20) + b"x" * 100_000)[:-50], "cannot be decompressed"),
        ("twice.raw.gz", gzip.compress(gzip.compress(b"x" * 100_000)), "compressed twice"),
    ],
)
def test_failed_decompression_leaves_no_volume(daemon, server, images, name, content, words):
    file = images["sparse.raw"].file.with_name(name)
    file.write_bytes(content)
    vouch(file)
    job = daemon.job_ended(daemon.submit(server.of(name), "web01", "raw"))
    assert job["status"] == "failed"
    assert words in job["error"]
    assert not any(path.startswith("volumes/") for path in daemon.files())
