"""Chunk checksums: damage is detected in every read that touches it."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.contracts.errors import CacheError, DamagedImageError
from provisioner.download.chunk_sums import CHUNK, ChunkChecker, ChunkSummer

SIZE = 5 * CHUNK + 4097


def content():
    """Return data, a hole of two chunks, data, and a hole up to the end."""
    data = bytearray(random.Random(7).randbytes(SIZE))
    data[CHUNK + 5000 : 3 * CHUNK + 9000] = bytes(2 * CHUNK + 4000)
    data[4 * CHUNK - 10 :] = bytes(SIZE - 4 * CHUNK + 10)
    return bytes(data)


DATA = content()


def sums_of(data, step=CHUNK):
    summer = ChunkSummer()
    for at in range(0, len(data), step):
        summer.feed(memoryview(data)[at : at + step])
    return summer.finish()


def write_sparse(path, data, grain=4096):
    with path.open("wb") as file:
        for at in range(0, len(data), grain):
            if any(data[at : at + grain]):
                file.seek(at)
                file.write(data[at : at + grain])
        file.truncate(len(data))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    write_sparse(path, DATA)
    return path


@pytest.fixture
def checker(image):
    with image.open("rb") as file:
        yield ChunkChecker(file.fileno(), SIZE, sums_of(DATA))


@pytest.mark.parametrize("step", [1000, CHUNK - 1, CHUNK, 3 * CHUNK, SIZE])
def test_summer_any_piece_size(step):
    assert sums_of(DATA, step) == sums_of(DATA)


def test_checker_empty_file(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"")
    with path.open("rb") as file:
        checker = ChunkChecker(file.fileno(), 0, ChunkSummer().finish())
        checker.check_all(lambda: None)
        checker.check_zeros(0, 0)


def test_checker_intact_file(checker):
    checker.check_all(lambda: None)
    checker.check_zeros(CHUNK + 5000, 3 * CHUNK + 9000)
    checker.check_zeros(4 * CHUNK - 10, SIZE)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.integers(1, 3 * CHUNK), st.booleans())
def test_checker_flipped_bit(tmp_path_factory, rotten, start, length, again):
    """A read fails if it touches the damaged chunk and passes otherwise, also after other reads."""
    path = tmp_path_factory.mktemp("rot") / "image"
    data = bytearray(DATA)
    data[rotten] ^= 1
    write_sparse(path, data)
    stop = min(start + length, SIZE)
    with path.open("rb") as file:
        checker = ChunkChecker(file.fileno(), SIZE, sums_of(DATA))
        if again and rotten // CHUNK != 0:
            checker.check(10, memoryview(data)[10:20])
        read = memoryview(os.pread(file.fileno(), stop - start, start))
        if start // CHUNK <= rotten // CHUNK <= (stop - 1) // CHUNK:
            with pytest.raises(DamagedImageError, match=f"near byte {rotten // CHUNK * CHUNK}"):
                checker.check(start, read)
        else:
            checker.check(start, read)
        with pytest.raises(DamagedImageError):
            checker.check_all(lambda: None)


@pytest.mark.parametrize("lost", [0, 2 * CHUNK + CHUNK + 10_000, SIZE - 1])
def test_checker_lost_block(image, lost):
    """Data that became a hole and, in the last case, a hole that became data."""
    data = bytearray(DATA)
    if data[lost]:
        at = lost // 4096 * 4096
        data[at : at + 4096] = bytes(4096)
    else:
        data[lost] = 1
    write_sparse(image, data)
    with image.open("rb") as file, pytest.raises(DamagedImageError):
        ChunkChecker(file.fileno(), SIZE, sums_of(DATA)).check_all(lambda: None)


def test_checker_all_data_lost(image):
    write_sparse(image, bytes(SIZE))
    with image.open("rb") as file:
        checker = ChunkChecker(file.fileno(), SIZE, sums_of(DATA))
        with pytest.raises(DamagedImageError):
            checker.check_zeros(0, SIZE)
        with pytest.raises(DamagedImageError):
            checker.check_all(lambda: None)


def test_checker_truncated_file(image):
    os.truncate(image, CHUNK)
    with image.open("rb") as file, pytest.raises(DamagedImageError, match="ends at byte"):
        ChunkChecker(file.fileno(), SIZE, sums_of(DATA)).check(CHUNK - 10, memoryview(DATA)[CHUNK - 10 : CHUNK + 10])


def test_checker_wrong_number_of_sums(image):
    with image.open("rb") as file, pytest.raises(CacheError, match="does not match the cached image's size"):
        ChunkChecker(file.fileno(), SIZE, sums_of(DATA)[:-4])


def test_check_all_cancelled(checker):
    def cancelled():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checker.check_all(cancelled)
