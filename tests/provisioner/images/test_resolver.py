"""A name is resolved to the newest image; older answers serve while the publisher does not answer."""

import hashlib

import msgspec
import pytest
import trio

from provisioner.config import NamedImage
from provisioner.contracts.errors import (
    ImageError,
    NotFoundError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SourceError,
    UrlNotAllowedError,
)
from provisioner.contracts.testing import FakeSource
from provisioner.images import ImageResolver

HOST = "https://images.example"
PATTERN = HOST + "/pub/{version}/a-{version}.qcow2"
DIGEST = hashlib.sha256(b"image").hexdigest()


def links(*names):
    return "".join(f'<a href="{name}">{name}</a>' for name in names).encode()


def a_resolver(pages, cached=(), **settings):
    """Return a resolver whose image ``a`` has these settings, and its source."""
    source = FakeSource(pages)
    image = msgspec.convert({"url": PATTERN} | settings, NamedImage)
    return ImageResolver({"a": image}, lambda url: source, lambda: cached), source


async def test_image_with_a_fixed_url_asks_nobody():
    resolver, source = a_resolver({}, url=f"{HOST}/a.qcow2", checksum=f"sha256:{DIGEST}", image_type="raw")
    found = await resolver.resolve("a")
    assert (str(found.url), str(found.checksum), found.image_type, found.version) == (
        f"{HOST}/a.qcow2",
        f"sha256:{DIGEST}",
        "raw",
        None,
    )
    assert source.opens == []


async def test_unknown_name():
    resolver, _ = a_resolver({})
    with pytest.raises(NotFoundError, match="no image named 'b'; there are: a"):
        await resolver.resolve("b")


async def test_newest_of_a_listing():
    resolver, _ = a_resolver({f"{HOST}/pub/": links("9/", "10/", "latest/")})
    found = await resolver.resolve("a")
    assert (found.url.text, found.version) == (f"{HOST}/pub/10/a-10.qcow2", "10")


async def test_two_listings():
    pages = {
        f"{HOST}/": links("40/", "41/"),
        f"{HOST}/41/images/": links("a-41-1.3.qcow2", "a-41-1.4.qcow2", "CHECKSUM"),
    }
    resolver, _ = a_resolver(pages, url=HOST + "/{release}/images/a-{release}-{build}.qcow2")
    found = await resolver.resolve("a")
    assert (found.url.text, found.version) == (f"{HOST}/41/images/a-41-1.4.qcow2", "41-1.4")


async def test_checksum_file_of_its_own_name():
    pages = {f"{HOST}/pub/": links("2/"), f"{HOST}/pub/2/SUMS-2": f"{DIGEST}  a-2.qcow2\n".encode()}
    resolver, _ = a_resolver(pages, checksum_url=HOST + "/pub/{version}/SUMS-{version}")
    assert (await resolver.resolve("a")).checksum.hex == DIGEST


async def test_checksum_file_without_the_image():
    pages = {f"{HOST}/pub/": links("2/"), f"{HOST}/pub/2/SUMS": f"{DIGEST}  b.qcow2\n".encode()}
    resolver, _ = a_resolver(pages, checksum_url=HOST + "/pub/{version}/SUMS")
    with pytest.raises(ImageError, match=r"SUMS has no SHA-256 or SHA-512 of a-2.qcow2"):
        await resolver.resolve("a")


async def test_answer_is_reused_for_minutes(autojump_clock):
    resolver, source = a_resolver({f"{HOST}/pub/": links("1/")})
    assert (await resolver.resolve("a")).version == "1"
    source.images[f"{HOST}/pub/"] = FakeSource({"x": links("1/", "2/")}).images["x"]
    assert (await resolver.resolve("a")).version == "1"
    await trio.sleep(301)
    assert (await resolver.resolve("a")).version == "2"


async def test_one_question_for_many_callers():
    resolver, source = a_resolver({f"{HOST}/pub/": links("1/")})
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(resolver.resolve, "a")
    assert len(source.opens) == 1


async def test_older_answer_while_the_publisher_is_down(autojump_clock):
    resolver, source = a_resolver({f"{HOST}/pub/": links("1/")})
    await resolver.resolve("a")
    await trio.sleep(301)
    del source.images[f"{HOST}/pub/"]
    assert (await resolver.resolve("a")).version == "1"


async def test_newest_cached_image_while_the_publisher_is_down():
    cached = [f"{HOST}/pub/9/a-9.qcow2", f"{HOST}/pub/10/a-10.qcow2", f"{HOST}/pub/11/b-11.qcow2", f"{HOST}/x"]
    resolver, _ = a_resolver({}, cached)
    assert (await resolver.resolve("a")).url.text == f"{HOST}/pub/10/a-10.qcow2"


async def test_publisher_is_down_and_nothing_is_known():
    resolver, _ = a_resolver({})
    with pytest.raises(SourceError, match="the newest image 'a' could not be determined: "):
        await resolver.resolve("a")


async def test_publisher_that_never_answers(autojump_clock):
    source = FakeSource({f"{HOST}/pub/": links("1/")}, hang_at="read")
    resolver = ImageResolver({"a": NamedImage(url=PATTERN)}, lambda url: source, tuple)
    with pytest.raises(RemoteUnavailableError, match="no answer within 20 s"):
        await resolver.resolve("a")


async def test_listing_without_a_match():
    resolver, _ = a_resolver({f"{HOST}/pub/": links("latest/")})
    with pytest.raises(RemoteNotFoundError, match=r"/pub/ lists nothing that matches \{version\}"):
        await resolver.resolve("a")


async def test_endless_listing():
    resolver, _ = a_resolver({f"{HOST}/pub/": b"x" * (17 * 2**20)})
    with pytest.raises(ImageError, match="too large for an index"):
        await resolver.resolve("a")


@pytest.mark.parametrize("location", ["https://a b/", "https://images.example/../x", "file://host/etc/passwd"])
async def test_index_with_an_unusable_url(location):
    index = {"url": f"{HOST}/index.json", "location": "/url"}
    resolver, _ = a_resolver({f"{HOST}/index.json": f'{{"url": "{location}"}}'.encode()}, url=None, index=index)
    with pytest.raises((ImageError, UrlNotAllowedError)):
        await resolver.resolve("a")
