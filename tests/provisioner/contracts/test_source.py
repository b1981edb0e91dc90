"""What every source inherits: saving a stream, and complete writes."""

import os

import pytest
import trio

from provisioner.contracts.source import ImageStream, pwrite_all


class Chunks(ImageStream):
    """A stream whose iterator is a generator, the most common case."""

    def __init__(self, chunks, start=0):
        self.chunks = chunks
        self.start = start
        self.closed = False

    async def __aiter__(self):
        try:
            for chunk in self.chunks:
                await trio.lowlevel.checkpoint()
                yield chunk
        finally:
            self.closed = True


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


async def test_save_writes_at_offsets(file):
    ends = []
    assert await Chunks([b"abc", b"", b"de"], start=4).save(file, ends.append) == 9
    assert os.pread(file, 100, 0) == b"\0\0\0\0abcde"
    assert ends == [7, 7, 9]


async def test_save_cancelled_closes_stream(file):
    scope, stream = trio.CancelScope(), Chunks([b"x"] * 1000)
    with scope:
        await stream.save(file, lambda end: scope.cancel())
    assert scope.cancelled_caught
    assert stream.closed


async def test_save_failed_write_closes_stream():
    stream = Chunks([b"x"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        await stream.save(-1, lambda end: None)
    assert stream.closed


def test_pwrite_all_short_writes(file, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:3], offset))
    pwrite_all(file, b"0123456789", 5)
    assert os.pread(file, 100, 5) == b"0123456789"
