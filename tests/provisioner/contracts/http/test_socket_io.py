import errno
import os
import socket
from pathlib import Path

import pytest

from provisioner.contracts.errors import RemoteUnavailableError
from provisioner.contracts.http.socket_io import received, spliced
from provisioner.contracts.rate_limit import RateFloor

CONTENT = bytes(range(251)) * 3000
ANY_RATE = RateFloor(0, 1, "x")


@pytest.fixture
def wire():
    """The server's end and the client's end of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        yield server, client


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_spliced_offset_and_length(wire, file):
    server, client = wire
    server.sendall(CONTENT[:100_000])
    before = descriptors()
    assert sum(spliced(client, file, 4096, 90_000, 5, ANY_RATE, "x")) == 90_000
    assert os.pread(file, 200_000, 0) == bytes(4096) + CONTENT[:90_000]
    assert descriptors() == before


def test_spliced_until_peer_closes(wire, file):
    server, client = wire
    server.sendall(CONTENT[:1000])
    server.close()
    assert sum(spliced(client, file, 0, 5000, 5, ANY_RATE, "x")) == 1000


def test_spliced_stall_closes_pipe(wire, file):
    server, client = wire
    server.sendall(CONTENT[:1000])
    before, moved = descriptors(), []
    with pytest.raises(RemoteUnavailableError, match="stalled"):
        moved.extend(spliced(client, file, 0, 5000, 0.1, ANY_RATE, "x"))
    assert os.pread(file, 5000, 0) == CONTENT[:1000]
    assert descriptors() == before


def test_spliced_without_file_system_support(wire, file, monkeypatch):
    splice = os.splice

    def not_into_files(source, target, count, **offsets):
        if "offset_dst" in offsets:
            raise OSError(errno.EINVAL, "Invalid argument")
        return splice(source, target, count, **offsets)

    monkeypatch.setattr(os, "splice", not_into_files)
    server, client = wire
    server.sendall(CONTENT[:60_000])
    assert sum(spliced(client, file, 10, 60_000, 5, ANY_RATE, "x")) == 60_000
    assert os.pread(file, 70_000, 10) == CONTENT[:60_000]


def test_spliced_to_full_disk(wire):
    server, client = wire
    server.sendall(CONTENT[:1000])
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        list(spliced(client, full, 0, 1000, 5, ANY_RATE, "x"))
    os.close(full)


def test_received_pieces_in_order(wire):
    server, client = wire
    server.sendall(CONTENT[:50_000])
    server.close()
    assert b"".join(bytes(piece) for piece in received(client, 60_000, 5, ANY_RATE, "x")) == CONTENT[:50_000]
