"""The look-up of checksums: which file wins, what happens with odd answers, and what is said if there is none."""

import hashlib

import pytest
import trio

from provisioner.contracts import Checksum, ImageUrl
from provisioner.contracts.errors import RemoteDeniedError, RemoteUnavailableError, SourceError
from provisioner.contracts.testing import FakeSource
from provisioner.contracts.types import RemoteImage
from provisioner.download.checksum_lookup import MAX_SECONDS, SIDE_BY_SIDE, discover

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()
LONG = hashlib.sha512(b"a").hexdigest()
NAME = "disk.qcow2"
URL = f"https://images.example.com/pub/{NAME}"
IMAGE_URL = ImageUrl.parse(URL)
SIDE_256, SIDE_512 = f"{URL}.sha256", f"{URL}.sha512"
SUMS_256, SUMS_512 = (URL.replace(NAME, f"SHA{bits}SUMS") for bits in (256, 512))


class Web(FakeSource):
    """Serves texts by url. An exception as a text is raised; ``asked`` has the urls, ``most`` the requests at once."""

    def __init__(self, files, patterns=()):
        self.errors = {url: text for url, text in files.items() if isinstance(text, Exception)}
        texts = {url: text.encode() for url, text in files.items() if isinstance(text, str)}
        super().__init__({URL: b"image", **texts})
        self.patterns, self.most = patterns, 0

    def checksum_files(self):
        return self.patterns

    def _image(self, url):
        self.most = max(self.most, self.open_now + 1)
        if url in self.errors:
            raise self.errors[url]
        return super()._image(url)

    @property
    def asked(self):
        return [url.rsplit("/", 1)[-1] for url, _, _ in self.opens]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({SIDE_256: A, SIDE_512: LONG, SUMS_256: f"{B}  {NAME}"}, Checksum("sha256", A)),
        ({SIDE_512: LONG, SUMS_256: f"{B}  {NAME}"}, Checksum("sha512", LONG)),
        ({SUMS_256: f"{B}  {NAME}", SUMS_512: f"{LONG}  {NAME}"}, Checksum("sha256", B)),
        ({SUMS_256: f"{B}  other", SUMS_512: f"{LONG}  {NAME}"}, Checksum("sha512", LONG)),
        ({SUMS_256: f"{B}  other"}, None),
    ],
)
async def test_discover_order(files, expected):
    """The sidecar comes first; a query, such as a signature, is not part of its name."""
    source = Web(files)
    found = await discover(source, ImageUrl.parse(f"{URL}?token=x"))
    assert found.checksum == expected
    assert (found.origin in files) == (expected is not None)
    assert source.open_now == 0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no such file",
        "<!doctype html><html>sign in</html>",
        f"{A}\n{B}\n",
        SourceError("the server answered HTTP 400"),
        RemoteDeniedError("no"),
        RemoteUnavailableError("HTTP 500"),
    ],
)
async def test_discover_past_odd_answers(answer):
    """A checksum file is optional: an odd answer to one only means that the next one is used."""
    sidecars = {f"{URL}{suffix}": answer for suffix in (".sha256", ".sha512", ".SHA256SUM", "-CHECKSUM", ".DIGESTS")}
    found = await discover(Web({**sidecars, SUMS_256: f"{A}  {NAME}"}), IMAGE_URL)
    assert (found.checksum, found.origin) == (Checksum("sha256", A), SUMS_256)


async def test_discover_lists_what_was_tried():
    files = {SIDE_256: "<html>", SUMS_256: f"{B}  other", URL.replace(NAME, "MD5SUMS"): f"{'0' * 32}  {NAME}"}
    found = await discover(Web(files), IMAGE_URL)
    assert found.checksum is None
    reasons = found.reasons()
    assert "disk.qcow2.sha256: it is a web page" in reasons
    assert "SHA256SUMS: it does not list disk.qcow2" in reasons
    assert "MD5SUMS: it has only the image's md5, which is too weak" in reasons
    assert "not found: disk.qcow2.sha512, " in reasons
    assert "CHECKSUM.SHA256" in reasons


async def test_discover_says_the_same_once():
    """A store that answers everything in the same odd way takes one part of the message, without urls."""
    error = SourceError(f"the server answered HTTP 409 for {SIDE_256}")
    other = SourceError(f"the server answered HTTP 409 for {SIDE_512}")
    found = await discover(Web({SIDE_256: error, SIDE_512: other}), IMAGE_URL)
    assert found.useless == {"the server answered HTTP 409": ["disk.qcow2.sha256", "disk.qcow2.sha512"]}


@pytest.mark.parametrize(
    ("message", "reason"),
    [(f"{SIDE_256}: connecting timed out", "connecting timed out"), (f"{SIDE_256} stalled", "it stalled")],
)
async def test_discover_names_the_file_once(message, reason):
    found = await discover(Web({SIDE_256: SourceError(message)}), IMAGE_URL)
    assert found.useless == {reason: ["disk.qcow2.sha256"]}


async def test_discover_denied_or_down():
    """Stores report missing objects as denied; a server that is down does not count as "no checksum"."""
    source = FakeSource({URL: b"image"}, fail_at={"open": RemoteDeniedError("no")})
    assert (await discover(source, IMAGE_URL)).checksum is None
    source = FakeSource({URL: b"image"}, fail_at={"open": RemoteUnavailableError("down")})
    with pytest.raises(RemoteUnavailableError, match=r"disk\.qcow2\.sha256, .*: down"):
        await discover(source, IMAGE_URL)


async def test_discover_configured_pattern():
    web = Web({f"{URL}.digest": A, SIDE_256: B}, ["{dir}/{name}.digest"])
    assert (await discover(web, IMAGE_URL)).checksum == Checksum("sha256", A)


async def test_discover_asks_side_by_side(autojump_clock):
    """All names together take little more than one answer does, and a small server is not flooded."""

    class Slow(Web):
        async def pass_by(self, url, start, stop):
            await trio.sleep(1)

    source = Slow(
        {SUMS_512: f"{LONG}  {NAME}", **{f"{URL}{s}": "nothing" for s in (".sha256", ".sha512", ".SHA256SUM")}}
    )
    began = trio.current_time()
    assert (await discover(source, IMAGE_URL)).checksum == Checksum("sha512", LONG)
    assert trio.current_time() - began <= 2
    assert 1 < source.most <= SIDE_BY_SIDE


async def test_discover_stops_when_decided(autojump_clock):
    """Once the best answer is there, the others are not waited for."""

    class Hangs(Web):
        async def pass_by(self, url, start, stop):
            if url != SIDE_256:
                await trio.sleep_forever()

    source, began = Hangs({SIDE_256: A, SIDE_512: LONG, SUMS_256: f"{B}  {NAME}"}), trio.current_time()
    assert (await discover(source, IMAGE_URL)).checksum == Checksum("sha256", A)
    assert trio.current_time() == began
    assert source.open_now == 0


async def test_discover_slow_file(autojump_clock):
    """A file that never ends is given up; another one may still have the checksum."""

    class Stuck(Web):
        async def pass_by(self, url, start, stop):
            if url == SIDE_256:
                await trio.sleep_forever()

    began = trio.current_time()
    found = await discover(Stuck({SIDE_256: A, SUMS_256: f"{B}  {NAME}"}), IMAGE_URL)
    assert found.checksum == Checksum("sha256", B)
    assert trio.current_time() - began == pytest.approx(MAX_SECONDS)


async def test_discover_large_list():
    """A list of several MiB is parsed while it arrives."""
    text = "".join(f"{B}  some/where/package-{number}.rpm\n" for number in range(50_000)) + f"{A}  {NAME}\n"
    assert len(text) > 4 * 2**20
    assert (await discover(Web({SUMS_256: text}), IMAGE_URL)).checksum == Checksum("sha256", A)


async def test_discover_what_the_server_vouches_for():
    """The server's own digest counts only if the publisher's is missing: it follows whatever the server stores."""
    remote = RemoteImage(IMAGE_URL, 5, None, accepts_ranges=True, digest=Checksum("sha256", B))
    found = await discover(Web({}), IMAGE_URL, remote)
    assert (found.checksum, found.origin) == (Checksum("sha256", B), f"the server's own headers for {URL}")
    assert (await discover(Web({SIDE_256: A}), IMAGE_URL, remote)).checksum == Checksum("sha256", A)


async def test_discover_with_a_digest_as_version():
    """A registry finds images by digest: no file is looked for."""
    digest, source = Checksum("sha256", A), Web({SIDE_256: B})
    remote = RemoteImage(IMAGE_URL, 5, str(digest), accepts_ranges=True, digest=digest)
    assert (await discover(source, IMAGE_URL, remote)).checksum == digest
    assert not source.asked
