"""Read-ahead: which parts are fetched, which are not, and how a server that sends different bytes is detected."""

import os
from dataclasses import replace

import pytest

from provisioner.contracts import ImageUrl
from provisioner.contracts.errors import RemoteChangedError, RemoteUnavailableError
from provisioner.contracts.testing import FakeImage, FakeSource
from provisioner.download.growing_file import GrowingFile
from provisioner.download.read_ahead import MOST_BYTES, MOST_PARTS, NEAR, ReadAhead

URL = "https://images.example.com/disk.qcow2"
DATA = os.urandom(1 << 20) * 40
FAR = NEAR + 4096


class Server(FakeSource):
    """A source that calls ``meanwhile`` during each request."""

    def __init__(self, meanwhile=lambda: None):
        super().__init__({URL: DATA})
        self.meanwhile = meanwhile

    async def pass_by(self, url, start, stop):
        self.meanwhile()
        await super().pass_by(url, start, stop)


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "partial", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


async def read_ahead(file, source, **remote):
    return ReadAhead(source, replace(await source.stat(ImageUrl.parse(URL)), **remote), GrowingFile(file, 1 << 40))


async def test_read_ahead_matches_image(file):
    source = Server()
    parts = await read_ahead(file, source)
    assert await parts.read(FAR, FAR + 65536) == DATA[FAR : FAR + 65536]
    os.pwrite(file, DATA, 0)
    parts.check(file)


@pytest.mark.parametrize("stop", [FAR, FAR + 65536])
async def test_read_ahead_differs_from_image(file, stop):
    parts = await read_ahead(file, Server())
    await parts.read(stop, stop + 65536)
    os.pwrite(file, DATA, 0)
    os.pwrite(file, bytes([DATA[stop + 100] ^ 1]), stop + 100)
    with pytest.raises(RemoteChangedError, match="different bytes"):
        parts.check(file)


@pytest.mark.parametrize(
    ("start", "length", "remote"),
    [
        (NEAR - 1, 65536, {}),
        (FAR, MOST_BYTES + 1, {}),
        (FAR, 65536, {"accepts_ranges": False}),
    ],
)
async def test_read_ahead_not_worthwhile(file, start, length, remote):
    source = Server()
    assert await (await read_ahead(file, source, **remote)).read(start, start + length) is None
    assert source.opens == []


async def test_read_ahead_limits_requests(file):
    source = Server()
    parts = await read_ahead(file, source)
    answers = [await parts.read(FAR + at, FAR + at + 512) for at in range(MOST_PARTS + 5)]
    assert [answer is not None for answer in answers] == [True] * MOST_PARTS + [False] * 5
    assert len(source.opens) == MOST_PARTS


async def test_read_ahead_stops_after_error(file):
    def refuse():
        raise RemoteUnavailableError("down")

    source = Server(refuse)
    parts = await read_ahead(file, source)
    assert [await parts.read(FAR, FAR + 512), await parts.read(FAR, FAR + 512)] == [None, None]
    assert len(source.opens) == 1


async def test_read_ahead_stops_if_ranges_ignored(file):
    source = FakeSource({URL: FakeImage(DATA, accepts_ranges=False)})
    parts = await read_ahead(file, source, accepts_ranges=True)
    assert [await parts.read(FAR, FAR + 512), await parts.read(FAR, FAR + 512)] == [None, None]
    assert len(source.opens) == 1


async def test_read_ahead_overtaken_by_download(file):
    source = Server(lambda: parts._growing_file.advance(len(DATA)))
    parts = await read_ahead(file, source)
    assert await parts.read(FAR, FAR + 512) is None
