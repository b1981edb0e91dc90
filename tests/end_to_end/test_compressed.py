"""Tests of packed images: the volume has the image inside, the cache the file as it was published; bombs fail."""

import bz2
import gzip
import lzma

import lz4.frame
import pytest
import zstandard

from tests.end_to_end.conftest import same, vouch
from tests.hostile.forge import tar_of, zip_of

pytestmark = pytest.mark.slow


def tar(data):
    """Return the disk as an appliance: a description comes first."""
    return tar_of({"vm.ovf": b"<Envelope/>\n" * 99, "disk1": data})


def zipped(data):
    return zip_of({"disk.img": data})


PACKERS = {
    "gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress, "bz2": bz2.compress,
    "lz4": lz4.frame.compress, "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE), "tar": tar, "zip": zipped,
    "tar.gz": lambda data: gzip.compress(tar(data)), "gz.tar": lambda data: tar(gzip.compress(data)),
}  # fmt: skip
# What OpenWrt appends: a signature and metadata that are not gzip.
METADATA = bytes(8) + b'{ "metadata_version": "1.1" }\n' + b"FWx0" + bytes(12)


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


def test_bytes_after_gzip(daemon, server, images):
    image = images["sparse.raw"]
    packed = image.file.with_name("openwrt.img.gz")
    packed.write_bytes(gzip.compress(image.file.read_bytes()) + METADATA)
    vouch(packed)
    job = daemon.job_ended(daemon.submit(server.of(packed.name), "openwrt", "raw"))
    assert job["status"] == "completed", job
    assert same(image, daemon.volume("openwrt"))
    assert daemon.event("bytes after the last gzip member of the image are ignored")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bomb.raw.gz", gzip.compress(bytes(1025 * 2**20), 1), "decompresses to more than"),
        ("cut.raw.xz", lzma.compress(bytes(2**20) + b"x" * 100_000)[:-50], "cannot be decompressed"),
        ("two.zip", zipped(b"x" * 100_000)[:-30], "cannot be extracted"),
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
