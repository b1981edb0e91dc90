"""Later jobs ask for two things at once, and still notice every change that strong version tags show."""

import hashlib
from contextlib import asynccontextmanager

import pytest
import trio

from provisioner.contracts import Checksum, ImageUrl, RemoteImage
from provisioner.contracts.errors import ImageFormatError, RemoteNotFoundError, RemoteUnavailableError
from provisioner.contracts.testing import FakeImage, FakeSource
from provisioner.download import checksum_memory
from provisioner.download.checksum_memory import RECHECK, ChecksumMemory, side_by_side
from provisioner.download.checksum_names import PATTERNS, WEAK_PATTERNS

A, B = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
NAME = "disk.qcow2"
URL = f"https://images.example.com/pub/{NAME}"
IMAGE_URL = ImageUrl.parse(URL)
SIDE, SUMS, MD5 = f"{URL}.sha256", URL.replace(NAME, "SHA256SUMS"), URL.replace(NAME, "MD5SUMS")


class Web(FakeSource):
    """An image and texts with version tags. ``asked``: the urls of all requests; each takes a second of the clock."""

    def __init__(self, image_tag='"i1"', texts=None):
        super().__init__({URL: FakeImage(b"image", image_tag)})
        self.asked = []
        for url, (text, tag) in (texts or {}).items():
            self.put(url, text, tag)

    def put(self, url, text, tag):
        self.images[url] = FakeImage(text.encode(), tag)

    async def stat(self, url):
        self.asked.append(url.text)
        await trio.sleep(1)
        return await super().stat(url)

    @asynccontextmanager
    async def open(self, url, start=0, stop=None, version=None):
        self.asked.append(url.text)
        await trio.sleep(1)
        async with super().open(url, start, stop, version) as stream:
            yield stream


async def ask(memory, web):
    """Return the checksum's hex digits, the requests, and the seconds that they took."""
    web.asked.clear()
    began = trio.current_time()
    _, found = await memory.look_up(web, IMAGE_URL, lambda: web.stat(IMAGE_URL))
    return (found.checksum and found.checksum.hex), list(web.asked), round(trio.current_time() - began)


@pytest.fixture
def web():
    return Web(texts={SUMS: (f"{A}  {NAME}\n", '"s1"')})


@pytest.fixture
async def memory(web):
    """A memory that has looked up the image once."""
    memory = ChecksumMemory()
    digest, asked, seconds = await ask(memory, web)
    assert (digest, seconds) == (A, 2)
    assert len(asked) > 6
    return memory


async def test_unchanged_asks_for_two_at_once(memory, web, autojump_clock):
    for _ in range(3):
        digest, asked, seconds = await ask(memory, web)
        assert (digest, sorted(asked), seconds) == (A, sorted([SUMS, URL]), 1)


async def test_changed_checksum_file_is_noticed(memory, web, autojump_clock):
    web.put(SUMS, f"{B}  {NAME}\n", '"s2"')
    assert (await ask(memory, web))[0] == B
    assert (await ask(memory, web))[::2] == (B, 1)


async def test_removed_checksum_file_is_noticed(memory, web, autojump_clock):
    del web.images[SUMS]
    assert (await ask(memory, web))[0] is None
    web.put(SIDE, B, '"s3"')
    assert (await ask(memory, web))[0] == B


async def test_changed_image_is_looked_up_anew(memory, web, autojump_clock):
    """A publisher replaces an image and its checksum, here under a name that is preferred."""
    web.images[URL] = FakeImage(b"other", '"i2"')
    web.put(SIDE, B, '"s3"')
    assert (await ask(memory, web))[0] == B


async def test_preferred_name_is_noticed_later(memory, web, autojump_clock):
    """The file that decided is unchanged, so a new one beside it can wait."""
    web.put(SIDE, B, '"s3"')
    assert (await ask(memory, web))[0] == A
    await trio.sleep(RECHECK + 1)
    assert (await ask(memory, web))[0] == B


async def test_forgotten_image_is_looked_up_anew(memory, web, autojump_clock):
    web.put(SIDE, B, '"s3"')
    memory.forget(ImageUrl.parse(URL + "2"))
    assert (await ask(memory, web))[0] == A
    memory.forget(IMAGE_URL)
    assert (await ask(memory, web))[0] == B


@pytest.mark.parametrize(
    ("image_tag", "file_tag"),
    [("modified now", '"s1"'), (None, '"s1"'), ('"i1"', "modified now"), ('"i1"', None)],
)
async def test_weak_tags_are_not_trusted(autojump_clock, image_tag, file_tag):
    """The text changes, and the tags do not."""
    web, memory = Web(image_tag, {SUMS: (f"{A}  {NAME}", file_tag)}), ChecksumMemory()
    assert (await ask(memory, web))[0] == A
    web.put(SUMS, f"{B}  {NAME}", file_tag)
    digest, asked, _ = await ask(memory, web)
    assert (digest, len(asked) > 6) == (B, True)


async def test_other_patterns_are_another_search(memory, web, autojump_clock):
    """After a reload, the source may look elsewhere first."""
    web.put(f"{URL}.digest", B, '"s3"')
    web.checksum_files = lambda: ["{dir}/{name}.digest"]
    assert (await ask(memory, web))[0] == B


async def test_no_checksum_takes_one_round_trip(autojump_clock):
    """All names are asked for at once, as each may be new; the weak ones are remembered, with what is said of them."""
    web, memory = Web(texts={MD5: (f"{'0' * 32}  {NAME}", None)}), ChecksumMemory()
    digest, asked, seconds = await ask(memory, web)
    assert (digest, len(asked), seconds) == (None, 1 + len(PATTERNS) + len(WEAK_PATTERNS), 4)
    digest, asked, seconds = await ask(memory, web)
    assert (digest, len(asked), seconds) == (None, 1 + len(PATTERNS), 1)
    _, found = await memory.look_up(web, IMAGE_URL, lambda: web.stat(IMAGE_URL))
    assert "too weak" in found.reasons()
    web.put(SIDE, B, None)
    assert (await ask(memory, web))[0] == B


async def test_the_memory_is_bounded(autojump_clock, monkeypatch):
    monkeypatch.setattr(checksum_memory, "MOST_IMAGES", 2)
    web, memory = Web(texts={SUMS: (f"{A}  {NAME}\n{B}  disk1\n{A}  disk2\n", '"s1"')}), ChecksumMemory()
    urls = [IMAGE_URL, *(ImageUrl.parse(URL.replace(NAME, name)) for name in ("disk1", "disk2"))]
    for url in urls:
        web.images[url.text] = FakeImage(b"image", '"i1"')
        await memory.look_up(web, url, lambda url=url: web.stat(url))
    for url, requests in zip(reversed(urls), (2, 2, 13), strict=True):
        web.asked.clear()
        await memory.look_up(web, url, lambda url=url: web.stat(url))
        assert len(web.asked) >= requests if requests > 2 else len(web.asked) == 2


async def test_missing_image_ends_the_search(autojump_clock):
    """Its error is the one to tell, and nothing is waited for."""
    web = Web(texts={SUMS: (A, None)})
    web.steps.fail_at = {"stat": RemoteNotFoundError("no image"), "open": RemoteUnavailableError("down")}
    began = trio.current_time()
    with pytest.raises(RemoteNotFoundError, match="no image"):
        await ChecksumMemory().look_up(web, IMAGE_URL, lambda: web.stat(IMAGE_URL))
    assert trio.current_time() - began == pytest.approx(1)
    assert web.open_now == 0


async def test_server_down_during_the_search(autojump_clock):
    """Whether there is a checksum is then unknown, also for an image whose checksum file is remembered."""
    web, memory = Web(texts={SUMS: (f"{A}  {NAME}", '"s1"')}), ChecksumMemory()
    await ask(memory, web)

    async def stat(url):
        if url == IMAGE_URL:
            return RemoteImage(url, 5, '"i1"', accepts_ranges=True)
        raise RemoteUnavailableError("down")

    web.stat = stat
    web.steps.fail_at = {"open": RemoteUnavailableError("down")}
    with pytest.raises(RemoteUnavailableError, match="no checksum was found"):
        await memory.look_up(web, IMAGE_URL, lambda: web.stat(IMAGE_URL))


@pytest.mark.parametrize("says_so", [True, False])
async def test_registry_finds_by_digest(autojump_clock, says_so):
    """Its digest counts, whatever lies beside the image; a source that says so is not asked for files."""
    web, memory = Web(texts={SIDE: (B, '"s1"')}), ChecksumMemory()
    web.by_digest, digest = says_so, Checksum("sha256", A)

    async def stat():
        await trio.sleep(1)
        return RemoteImage(IMAGE_URL, 5, str(digest), accepts_ranges=True, digest=digest)

    _, found = await memory.look_up(web, IMAGE_URL, stat)
    assert (found.checksum, bool(web.asked)) == (digest, not says_so)


@pytest.mark.parametrize("kind", [RemoteNotFoundError, ImageFormatError, RuntimeError])
async def test_error_of_the_image_is_raised_as_it_is(kind):
    """Also one that is not of the source, such as of a manifest without a disk: not in a group, and at once."""

    async def stat():
        raise kind("no disk")

    with pytest.raises(kind, match="no disk"):
        await side_by_side(stat, trio.sleep_forever)
