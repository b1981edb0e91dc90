"""Checksums of chunks: whatever is read, wherever it is cut, rot is found."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.contracts.errors import CacheError, DamagedImageError
from provisioner.download.chunk_sums import CHUNK, ChunkChecker, ChunkSummer

SIZE = 5 * CHUNK + 4097


def content():
    """Data, a hole of two chunks, data, and a hole to the end."""
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
def test_the_cuts_do_not_matter(step):
    assert sums_of(DATA, step) == sums_of(DATA)


def test_an_empty_file(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"")
    with path.open("rb") as file:
        checker = ChunkChecker(file.fileno(), 0, ChunkSummer().finish())
        checker.check_all(lambda: None)
        checker.check_zeros(0, 0)


def test_a_right_file(checker):
    checker.check_all(lambda: None)
    checker.check_zeros(CHUNK + 5000, 3 * CHUNK + 9000)
    checker.check_zeros(4 * CHUNK - 10, SIZE)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.integers(1, 3 * CHUNK), st.booleans())
def test_rot_is_found_by_any_read_of_its_chunk(tmp_path_factory, rotten, start, length, again):
    """A right read passes; one that touches the chunk with the wrong byte does not, before and after others."""
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
def test_a_lost_block_is_found(image, lost):
    """What reads as a hole and was none; at the end, what was one and is none."""
    data = bytearray(DATA)
    if data[lost]:
        at = lost // 4096 * 4096
        data[at : at + 4096] = bytes(4096)
    else:
        data[lost] = 1
    write_sparse(image, data)
    with image.open("rb") as file, pytest.raises(DamagedImageError):
        ChunkChecker(file.fileno(), SIZE, sums_of(DATA)).check_all(lambda: None)


def test_a_file_that_lost_everything(image):
    write_sparse(image, bytes(SIZE))
    with image.open("rb") as file:
        checker = ChunkChecker(file.fileno(), SIZE, sums_of(DATA))
        with pytest.raises(DamagedImageError):
            checker.check_zeros(0, SIZE)
        with pytest.raises(DamagedImageError):
            checker.check_all(lambda: None)


def test_a_shorter_file(image):
    os.truncate(image, CHUNK)
    with image.open("rb") as file, pytest.raises(DamagedImageError, match="ends at byte"):
        ChunkChecker(file.fileno(), SIZE, sums_of(DATA)).check(CHUNK - 10, memoryview(DATA)[CHUNK - 10 : CHUNK + 10])


def test_checksums_of_another_length(image):
    with image.open("rb") as file, pytest.raises(CacheError, match="another length"):
        ChunkChecker(file.fileno(), SIZE, sums_of(DATA)[:-4])


def test_a_cancel_is_heard(checker):
    def cancelled():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checker.check_all(cancelled)
