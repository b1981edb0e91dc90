"""Tests of finding the processes that have a file open, with the real kernel."""

import fcntl
import mmap
import os
import struct
import subprocess

import pytest

from lvp_target_file import holders
from lvp_target_file.holders import users_of


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(1024 * 1024))
    return path


def test_users_of_closed_file(image):
    assert users_of(image) == []


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_users_of_open_file(image, mode):
    with image.open(mode):
        (user,) = users_of(image)
    assert f"({os.getpid()})" in user.name
    assert users_of(image) == []


def test_users_of_mapped_file(image):
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        file.close()
        assert users_of(image) != []
    assert users_of(image) == []


def test_users_of_loop_device_file(image):
    loop = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        assert users_of(image) != []
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_is_locked_by_qemu_lock(image):
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
    with image.open("rb") as holder, image.open("rb") as asker:
        assert not holders._is_locked(asker.fileno())
        fcntl.fcntl(holder, 37, lock)  # F_OFD_SETLK
        assert holders._is_locked(asker.fileno())


def test_users_of_briefly_open_file(image, monkeypatch):
    with image.open("rb") as file:
        monkeypatch.setattr("time.sleep", lambda _: file.close())
        assert users_of(image) == []


def test_users_of_file_without_leases(image, monkeypatch):
    monkeypatch.setattr(holders, "_lease_refused", lambda fd: None)
    assert users_of(image) == []
    with image.open("rb"):
        assert f"({os.getpid()})" in users_of(image)[0].name


def test_users_of_missing_file(image):
    image.unlink()
    with pytest.raises(FileNotFoundError):
        users_of(image)
