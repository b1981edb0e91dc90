"""Servers that label a transfer as compressed: the image's digest decides whether it is decoded."""

import gzip
import hashlib
from contextlib import asynccontextmanager

import msgspec
import pytest

from lvp_source_http import HttpSettings, HttpSource
from provisioner.contracts import BackEndContext, Checksum, ImageUrl
from provisioner.jobs import Status
from tests.cancellation.harness import IMAGE, SPEC, Harness
from tests.servers.raw import raw_server, response, says
from tests.servers.site import site

PACKED = gzip.compress(IMAGE, 1)
MEMBERS = gzip.compress(IMAGE[:1000]) + gzip.compress(b"") + gzip.compress(IMAGE[1000:])


def labelled(body, label="gzip", *, chunked=False):
    """Answer with ``body``, compressed on the fly or stored so; ranges are ignored."""

    async def answer(request, stream):
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        await stream.send_all(response(f'200 OK\n{length}\nContent-Encoding: {label}\nETag: "v1"', sent))

    return answer


@asynccontextmanager
async def server_of(folder, files):
    async with raw_server(site(files)) as server:
        source = HttpSource(HttpSettings(urls=[server.url]), BackEndContext("http", folder))
        harness = Harness(folder, source=source)
        harness.server = server

        async def provision(digest_of):
            checksum = None if digest_of is None else Checksum("sha256", hashlib.sha256(digest_of).hexdigest())
            url = ImageUrl.parse(f"{server.url}/disk.raw")
            return await harness.run(msgspec.structs.replace(SPEC, image_url=url, checksum=checksum))

        async with harness.running():
            yield harness, provision
            assert harness.target.leftovers() == []
            harness.assert_cache_is_true()
        await source.aclose()


def images_asked(harness):
    return [one for one in harness.server.requests if one.target == "/disk.raw" and one.headers.get("range") is None]


@pytest.mark.parametrize("label", ["gzip", "X-GZip"])
@pytest.mark.parametrize("body", [PACKED, MEMBERS])
@pytest.mark.parametrize("chunked", [False, True])
async def test_compressed_on_the_fly(folder, body, label, chunked):
    """The digest is that of the decoded image, which is what is cached."""
    async with server_of(folder, {"/disk.raw": labelled(body, label, chunked=chunked)}) as (harness, provision):
        job = await provision(IMAGE)
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert harness.volume() == IMAGE
        assert len(images_asked(harness)) == 2
        (entry,) = harness.cache.entries()
        assert (entry.sha256, entry.compression) == (hashlib.sha256(IMAGE).hexdigest(), None)
        assert (await provision(IMAGE)).cache_hit
        assert len(images_asked(harness)) == 2


async def test_compressed_on_the_fly_with_a_sidecar(folder):
    sums = f"{hashlib.sha256(IMAGE).hexdigest()}  disk.raw\n".encode()
    files = {"/disk.raw": labelled(PACKED), "/SHA256SUMS": labelled(gzip.compress(sums))}
    async with server_of(folder, files) as (harness, provision):
        assert (await provision(None)).status is Status.COMPLETED
        assert harness.volume() == IMAGE


async def test_stored_compressed(folder):
    """The digest is that of the bytes as they are sent: one request is enough."""
    async with server_of(folder, {"/disk.raw": labelled(PACKED)}) as (harness, provision):
        job = await provision(PACKED)
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert harness.volume() == IMAGE
        assert len(images_asked(harness)) == 1


@pytest.mark.parametrize("body", [PACKED[:-5], b"\x1f\x8b\x08"])
async def test_cut_before_its_end(folder, body):
    """Whether the digest or the conversion notices first, nothing is left."""
    async with server_of(folder, {"/disk.raw": labelled(body)}) as (harness, provision):
        job = await provision(IMAGE)
        assert (job.status, harness.volume(), harness.cache.entries()) == (Status.FAILED, None, [])


@pytest.mark.parametrize("body", [PACKED, PACKED + b"more", IMAGE])
async def test_neither_matches(folder, body):
    """The error is about the bytes that the server sent, which is what a user can compare."""
    async with server_of(folder, {"/disk.raw": labelled(body)}) as (harness, provision):
        job = await provision(b"another image")
        assert (job.status, harness.volume()) == (Status.FAILED, None)
        assert f"sha256 is {hashlib.sha256(body).hexdigest()}, but" in job.error
        assert harness.cache.entries() == []


async def test_without_a_label_nothing_is_decoded(folder):
    answer = says(f"200 OK\nContent-Length: {len(PACKED)}", PACKED)
    async with server_of(folder, {"/disk.raw": answer}) as (harness, provision):
        assert (await provision(IMAGE)).status is Status.FAILED
        assert len(images_asked(harness)) == 1
