"""Queries, zeroing and discarding on files and loop devices."""

import os
import subprocess

import pytest

from provisioner.contracts import blockdev

SIZE = 4 * 1024**2


@pytest.fixture
def patterned(tmp_path):
    """An open file filled with a pattern."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xa5" * SIZE)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture(params=[512, 4096])
def loop(tmp_path, request):
    """An open loop device filled with a pattern, and its sector size."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xa5" * SIZE)
    attach = ["losetup", "--find", "--show", "--sector-size", str(request.param), path]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    fd = os.open(device, os.O_RDWR)
    yield fd, request.param
    os.close(fd)
    subprocess.run(["losetup", "--detach", device], check=True)


def zeros_of(fd):
    """Return the range of zeros, and check that the rest is unchanged."""
    data = os.pread(fd, SIZE + 1, 0)
    start, stop = data.find(b"\0"), data.rfind(b"\0") + 1
    assert data == b"\xa5" * start + bytes(stop - start) + b"\xa5" * (SIZE - stop)
    return start, stop


RANGES = [(0, SIZE), (0, 4096), (4096, 8192), (512, 5120), (1, 2), (4095, 4097), (1000, SIZE - 1000), (SIZE - 1, SIZE)]


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_zero_range_on_file(patterned, start, stop):
    blockdev.zero_range(patterned, start, stop)
    assert zeros_of(patterned) == (start, stop)


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_zero_range_on_device(loop, start, stop):
    blockdev.zero_range(loop[0], start, stop)
    assert zeros_of(loop[0]) == (start, stop)


def test_zero_range_empty(patterned):
    blockdev.zero_range(patterned, 100, 100)
    blockdev.zero_range(patterned, 200, 100)
    assert os.pread(patterned, SIZE, 0) == b"\xa5" * SIZE


def test_zero_range_punches_hole(patterned):
    blockdev.zero_range(patterned, 0, SIZE)
    assert os.fstat(patterned).st_size == SIZE
    assert os.fstat(patterned).st_blocks == 0


def test_zero_range_unsupported_writes_zeros(patterned, monkeypatch):
    monkeypatch.setattr(blockdev, "_zero_with_help", lambda fd, start, length: False)
    blockdev.zero_range(patterned, 1000, 3 * 1024**2 + 1)
    assert zeros_of(patterned) == (1000, 3 * 1024**2 + 1)


def test_zero_range_stopped_between_steps(patterned, monkeypatch):
    monkeypatch.setattr(blockdev, "ZERO_STEP", SIZE // 4)
    asked = []

    def stop_at_the_third():
        asked.append(None)
        if len(asked) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        blockdev.zero_range(patterned, 0, SIZE, stop_at_the_third)
    assert zeros_of(patterned) == (0, SIZE // 2)


def test_zero_range_reports_failure(tmp_path):
    (tmp_path / "disk").write_bytes(b"x" * 4096)
    fd = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"Bad file descriptor|fallocate"):
            blockdev.zero_range(fd, 0, 4096)
    finally:
        os.close(fd)


def test_file_queries(patterned):
    assert not blockdev.is_block_device(patterned)
    assert blockdev.device_size(patterned) == SIZE
    assert blockdev.logical_block_size(patterned) == 512
    assert not blockdev.discard_range(patterned, 0, SIZE)
    assert os.pread(patterned, SIZE, 0) == b"\xa5" * SIZE


def test_device_queries(loop):
    fd, sector_size = loop
    assert blockdev.is_block_device(fd)
    assert blockdev.device_size(fd) == SIZE
    assert blockdev.logical_block_size(fd) == sector_size


def test_discard_range_on_device(loop):
    assert blockdev.discard_range(loop[0], 0, SIZE // 2)
    assert os.pread(loop[0], SIZE // 2, SIZE // 2) == b"\xa5" * (SIZE // 2)
