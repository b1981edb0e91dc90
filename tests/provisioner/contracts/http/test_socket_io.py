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
    """A server's end, and a client's end of a connection."""
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


def test_spliced_bytes_stand_at_their_offset_and_no_more_than_asked_for(wire, file):
    server, client = wire
    server.sendall(CONTENT[:100_000])
    before = descriptors()
    assert sum(spliced(client, file, 4096, 90_000, 5, ANY_RATE, "x")) == 90_000
    assert os.pread(file, 200_000, 0) == bytes(4096) + CONTENT[:90_000]
    assert descriptors() == before


def test_splicing_ends_where_the_peer_does(wire, file):
    server, client = wire
    server.sendall(CONTENT[:1000])
    server.close()
    assert sum(spliced(client, file, 0, 5000, 5, ANY_RATE, "x")) == 1000


def test_a_stalled_splice_is_given_up_and_leaves_no_pipe(wire, file):
    server, client = wire
    server.sendall(CONTENT[:1000])
    before, moved = descriptors(), []
    with pytest.raises(RemoteUnavailableError, match="stalled"):
        moved.extend(spliced(client, file, 0, 5000, 0.1, ANY_RATE, "x"))
    assert os.pread(file, 5000, 0) == CONTENT[:1000]
    assert descriptors() == before


def test_a_file_system_without_splice_gets_its_bytes_all_the_same(wire, file, monkeypatch):
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


def test_a_full_disk_is_the_disks_fault(wire):
    server, client = wire
    server.sendall(CONTENT[:1000])
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        list(spliced(client, full, 0, 1000, 5, ANY_RATE, "x"))
    os.close(full)


def test_received_pieces_are_the_bytes_in_order(wire):
    server, client = wire
    server.sendall(CONTENT[:50_000])
    server.close()
    assert b"".join(bytes(piece) for piece in received(client, 60_000, 5, ANY_RATE, "x")) == CONTENT[:50_000]
