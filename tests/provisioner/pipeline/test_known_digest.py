"""Jobs with a known digest: it decides alone, whatever servers say about versions, and whether they are there."""

import hashlib
import itertools

import msgspec
import pytest

from lvp_source_http import HttpSettings, HttpSource
from provisioner.config import CacheSettings
from provisioner.contracts import BackEndContext, ByteSize, Checksum, ImageUrl
from provisioner.contracts.errors import RemoteDeniedError, RemoteNotFoundError, RemoteUnavailableError
from provisioner.contracts.testing import FakeCloneTarget, FakeImage, FakeSource
from provisioner.jobs import Status
from provisioner.pipeline.dry_run import DryRun
from tests.cancellation.harness import IMAGE, SPEC, URL, Harness
from tests.servers.raw import holds, raw_server, response
from tests.servers.site import NOT_FOUND, site

WEB02 = msgspec.structs.replace(SPEC, volume_name="web02")
PUBLISHED = msgspec.structs.replace(SPEC, checksum=None)
RETRYING = CacheSettings(min_free=ByteSize(0), download_attempts=3)


def http(folder, harness_settings, *urls):
    source = HttpSource(HttpSettings(urls=list(urls)), BackEndContext("http", folder))
    return source, Harness(folder, source=source, **harness_settings)


def spec_of(url, **changes):
    return msgspec.structs.replace(SPEC, image_url=ImageUrl.parse(url), **changes)


@pytest.mark.parametrize("target", [None, FakeCloneTarget])
@pytest.mark.parametrize(
    "error", [RemoteUnavailableError("refused"), RemoteNotFoundError("404"), RemoteDeniedError("403")], ids=str
)
async def test_cached_image_needs_no_server(folder, error, target):
    """If the request's digest is in the cache, the server is not asked, whether it is down or has lost the image."""
    harness = Harness(folder, target=target(folder / "main", name="main") if target else None)
    async with harness.running():
        assert (await harness.run()).status is Status.COMPLETED
        harness.source.steps.fail_at = {"stat": error, "open": error}
        harness.source.steps.log.clear()
        job = await harness.run(WEB02)
        assert (job.status, job.cache_hit, job.error) == (Status.COMPLETED, True, None)
        assert harness.source.steps.log == []
        dry_run = DryRun(harness.pipeline, WEB02)
        await dry_run.run()
        assert (dry_run.refusals, dry_run.plan.cache_hit) == ([], True)
        assert (await harness.run(msgspec.structs.replace(WEB02, checksum=None))).status is Status.FAILED
        harness.assert_nothing_left()


@pytest.mark.parametrize("published", [False, True])
async def test_other_etag_for_the_same_bytes(folder, published):
    """Load balancers and mirrors have an ETag each."""
    number = itertools.count()

    async def balanced(request, stream):
        await holds(IMAGE, f'"inode{next(number)}"')(request, stream)

    digest = hashlib.sha256(IMAGE).hexdigest()
    async with raw_server(site({"/disk": balanced, "/disk.sha256": digest})) as server:
        source, harness = http(folder, {}, server.url)
        async with harness.running():
            job = await harness.run(spec_of(f"{server.url}/disk", **({"checksum": None} if published else {})))
            assert (job.status, job.error) == (Status.COMPLETED, None)
        await source.aclose()


def cut(content, at, etag):
    """Return an answer that breaks off the first download of the image at a byte."""
    state = {"cut": False}

    async def answer(request, stream):
        if request.headers.get("range") == "bytes=0-0" or state["cut"]:
            await holds(content, etag)(request, stream)
            return
        state["cut"] = True
        head = f"200 OK\nContent-Length: {len(content)}\nETag: {etag}\nAccept-Ranges: bytes"
        await stream.send_all(response(head, content[:at]))

    return answer, state


async def test_download_resumed_on_another_mirror(folder):
    """The second mirror has another ETag; only the rest is fetched from it."""
    first, state = cut(IMAGE, 200_000, '"m1"')

    async def redirect(_request, stream):
        path = "second" if state["cut"] else "first"
        await stream.send_all(response(f"302 Found\nLocation: /{path}\nContent-Length: 0"))

    async with raw_server(site({"/disk": redirect, "/first": first, "/second": holds(IMAGE, '"m2"')})) as server:
        source, harness = http(folder, {"cache_settings": RETRYING}, server.url)
        async with harness.running():
            job = await harness.run(spec_of(f"{server.url}/disk"))
            assert (job.status, job.error) == (Status.COMPLETED, None)
            assert server.requests[-1].headers["range"].startswith("bytes=2")
        await source.aclose()


async def test_parts_of_different_images(folder):
    """Half of an old image and half of the new one: the job starts over, and gets the new one."""
    old = bytes([IMAGE[0] ^ 1]) + IMAGE[1:]
    files = {}
    first, state = cut(old, 200_000, '"old"')

    async def changing(request, stream):
        await (holds(IMAGE, '"new"') if state["cut"] else first)(request, stream)

    files["/disk"] = changing
    async with raw_server(site(files)) as server:
        source, harness = http(folder, {"cache_settings": RETRYING}, server.url)
        async with harness.running():
            job = await harness.run(spec_of(f"{server.url}/disk"))
            assert (job.status, job.error) == (Status.COMPLETED, None)
            assert harness.target.leftovers() == []
            harness.assert_cache_is_true()
        await source.aclose()


async def test_wrong_image_is_fetched_once(folder):
    """A whole image with another digest is wrong; a fresh download would be the same."""
    source = FakeSource({URL: FakeImage(IMAGE[::-1])})
    harness = Harness(folder, source=source)
    async with harness.running():
        job = await harness.run()
        assert "was expected by the request" in job.error
        assert len(source.opens) == 1
        harness.assert_nothing_left()


async def test_broken_off_job_is_resumed_by_the_next(folder):
    first, _ = cut(IMAGE, 200_000, '"m1"')
    async with raw_server(site({"/disk": first})) as server:
        source, harness = http(folder, {}, server.url)  # one attempt
        async with harness.running():
            assert (await harness.run(spec_of(f"{server.url}/disk"))).status is Status.FAILED
            job = await harness.run(spec_of(f"{server.url}/disk"))
            assert (job.status, job.error) == (Status.COMPLETED, None)
            assert server.requests[-1].headers["range"].startswith("bytes=2")
            assert harness.target.leftovers() == []
            harness.assert_cache_is_true()
        await source.aclose()


async def test_publication_in_progress(folder):
    """The image was replaced before its checksum: once both fit, the job succeeds."""
    stale, fresh = ("0" * 64, hashlib.sha256(IMAGE).hexdigest())
    texts = iter([stale])

    async def sums(request, stream):
        await holds(f"{next(texts, fresh)}  disk\n".encode())(request, stream)

    async with raw_server(site({"/disk": IMAGE, "/SHA256SUMS": sums})) as server:
        source, harness = http(folder, {}, server.url)
        async with harness.running():
            job = await harness.run(spec_of(f"{server.url}/disk", checksum=None))
            assert (job.status, job.error) == (Status.COMPLETED, None)
        await source.aclose()


@pytest.mark.parametrize(
    "head",
    [
        "200 OK\nContent-Length: 0",
        "200 OK\nContent-Length: 1234",
        "404 Not Found",
        "401 Unauthorized",
        "500 Oops",
        "405 No",
    ],
)
async def test_wrong_answer_to_head(folder, head):
    """What HEAD says does not matter if GET works."""

    async def answer(request, stream):
        if request.method == "HEAD":
            await stream.send_all(response(head))
        else:
            await holds(IMAGE)(request, stream)

    async with raw_server(answer) as server:
        source, harness = http(folder, {}, server.url)
        async with harness.running():
            job = await harness.run(spec_of(f"{server.url}/disk"))
            assert (job.status, job.error) == (Status.COMPLETED, None)
        await source.aclose()


async def test_digest_in_the_response_headers(folder):
    """A server that vouches for the bytes it sends needs no checksum file."""
    digest = hashlib.sha256(IMAGE).hexdigest()

    async def artifactory(request, stream):
        ranges = request.headers.get("range") == "bytes=0-0"
        status = f"206 Part\nContent-Range: bytes 0-0/{len(IMAGE)}" if ranges else "200 OK"
        body = IMAGE[:1] if ranges else IMAGE
        await stream.send_all(response(f"{status}\nX-Checksum-Sha256: {digest}\nContent-Length: {len(body)}", body))

    for missing, status in ((NOT_FOUND, Status.COMPLETED), (holds(b"0" * 64), Status.FAILED)):
        async with raw_server(site({"/disk": artifactory}, missing)) as server:
            (folder / status).mkdir()
            source, harness = http(folder / status, {}, server.url)
            async with harness.running():
                assert (await harness.run(spec_of(f"{server.url}/disk", checksum=None))).status is status
            await source.aclose()


async def test_configured_checksum_file(folder):
    digest = Checksum("sha512", hashlib.sha512(IMAGE).hexdigest())
    async with raw_server(site({"/a/disk": IMAGE, "/sums/disk.txt": digest.hex})) as server:
        settings = HttpSettings(urls=[server.url], checksum_files=["{parent}/sums/{name}.txt"])
        source = HttpSource(settings, BackEndContext("http", folder))
        harness = Harness(folder, source=source)
        async with harness.running():
            job = await harness.run(spec_of(f"{server.url}/a/disk", checksum=None))
            assert (job.status, job.error) == (Status.COMPLETED, None)
        await source.aclose()


async def test_further_job_asks_for_two_things(folder):
    """The image and the checksum file are unchanged by their tags; a changed checksum file is noticed."""
    digest = hashlib.sha256(IMAGE).hexdigest()
    files = {"/disk": holds(IMAGE), "/SHA256SUMS": holds(f"{digest}  disk\n".encode(), '"s1"')}
    async with raw_server(site(files)) as server:
        source, harness = http(folder, {}, server.url)
        async with harness.running():
            assert (await harness.run(spec_of(f"{server.url}/disk", checksum=None))).status is Status.COMPLETED
            server.requests.clear()
            job = await harness.run(spec_of(f"{server.url}/disk", checksum=None, volume_name="web02"))
            assert (job.status, job.cache_hit) == (Status.COMPLETED, True)
            assert sorted(request.target for request in server.requests) == ["/SHA256SUMS", "/disk"]
            files["/SHA256SUMS"] = holds(f"{'0' * 64}  disk\n".encode(), '"s2"')
            job = await harness.run(spec_of(f"{server.url}/disk", checksum=None, volume_name="web03"))
            assert (job.status, "0000" in job.error) == (Status.FAILED, True)
        await source.aclose()
