"""Files left by earlier downloads: resumed if that is safe, removed otherwise."""

import os
import time

import pytest

from provisioner.cache import partials
from provisioner.cache.partials import Content, Partials
from provisioner.contracts.errors import CacheError
from tests.provisioner.cache.host import append_only, immutable


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "partial"


WHAT = Content("url", "version", "url version checksum")
OTHER_VERSION = Content("url", "another", "url another checksum")
OTHER_URL = Content("another", "version", "another version checksum")
UNNAMED = Content("url", None, None)


def leave(folder, content, what=WHAT):
    """Leave the file of a download that an earlier run did not complete; return its path."""
    fd, path, there = Partials(folder, print).open(what, 1000)
    assert there == 0
    os.write(fd, content)
    os.close(fd)
    return path


def reopened(folder, what=WHAT, size=1000):
    removed = []
    fd, path, there = Partials(folder, lambda _what, name: removed.append(name)).open(what, size)
    content = os.pread(fd, 10_000, 0)
    os.close(fd)
    return path, there, content, removed


def test_open_resumes_same_content(folder):
    path = leave(folder, b"half of it")
    assert reopened(folder) == (path, 10, b"half of it", [])


def test_open_other_content(folder):
    path = leave(folder, b"half of it")
    other, there, _, removed = reopened(folder, what=OTHER_URL)
    assert other != path
    assert there == 0
    assert removed == []
    assert path.exists()


def test_open_removes_other_version(folder):
    """The server has a new version, so the old one is never requested again."""
    path = leave(folder, b"half of it")
    _, there, _, removed = reopened(folder, what=OTHER_VERSION)
    assert there == 0
    assert removed == [path.name]
    assert not path.exists()


def test_open_keeps_other_checksum(folder):
    path = leave(folder, b"half of it")
    assert reopened(folder, what=Content("url", "version", "url version sha512"))[3] == []
    assert path.exists()


def test_sweep_left_over_files(folder):
    first = leave(folder, b"0123456789")
    os.utime(first, (time.time() - 60,) * 2)
    second = leave(folder, b"01234", what=OTHER_URL)
    partials = Partials(folder, lambda *_: None)
    assert partials.left_over == 15
    assert partials.sweep(1) == 10
    assert not first.exists()
    assert partials.left_over == 5
    assert partials.sweep_all() == 5
    assert not second.exists()
    assert partials.left_over == 0


def test_sweep_spares_claimed_file(folder):
    path = leave(folder, b"half of it")
    partials = Partials(folder, lambda *_: None)
    fd, *_ = partials.open(WHAT, 1000)
    os.close(fd)
    assert partials.left_over == 0
    assert partials.sweep_all() == 0
    assert path.exists()
    partials.keep(path)
    assert partials.left_over == 10


def test_remove_fails_frees_space(folder):
    """The file is truncated, so the next start does not resume it."""
    partials = Partials(folder, lambda *_: None)
    fd, path, _ = partials.open(WHAT, 1000)
    os.write(fd, b"half of it")
    os.close(fd)
    with append_only(folder), pytest.raises(CacheError):
        partials.remove(path)
    assert path.stat().st_size == 0
    assert reopened(folder)[3] == [path.name]


def test_open_immutable_file(folder):
    path = leave(folder, b"half of it")
    with immutable(path):
        other, there, *_ = reopened(folder)
    assert (there, path.exists()) == (0, True)
    assert other != path


def test_sweep_immutable_file(folder):
    """The cache starts anyway, the file still counts, and it is removed as soon as possible."""
    path = leave(folder, b"half of it")
    reports = []
    with immutable(path):
        partials = Partials(folder, lambda what, _name: reports.append(what))
        assert partials.sweep_all() == 0
        assert partials.left_over == 10
        with pytest.raises(CacheError, match="Operation not permitted"):
            partials.remove(path)
        assert partials.left_over == 10
    assert reports == ["a partial download cannot be removed (Operation not permitted)"]
    assert partials.sweep_old() == 10
    assert not path.exists()


def test_open_resumes_once(folder):
    leave(folder, b"half of it")
    living = Partials(folder, print)
    first, _, there = living.open(WHAT, 1000)
    second, _, nothing = living.open(WHAT, 1000)
    assert (there, nothing) == (10, 0)
    os.close(first)
    os.close(second)


def test_open_file_longer_than_image(folder):
    leave(folder, b"more than there should be")
    _, there, content, _ = reopened(folder, size=5)
    assert (there, content) == (0, b"")


def test_open_after_reboot(folder, monkeypatch, tmp_path):
    path = leave(folder, b"half of it")
    boot = tmp_path / "boot_id"
    boot.write_text("another1-boot\n")
    monkeypatch.setattr(partials, "_BOOT_ID", boot)
    _, there, _, removed = reopened(folder)
    assert there == 0
    assert removed == [path.name]
    assert not path.exists()


def test_start_removes_old_files(folder):
    path = leave(folder, b"half of it")
    old = time.time() - partials.MAX_AGE - 1
    os.utime(path, (old, old))
    assert reopened(folder)[3] == [path.name]


def test_open_content_without_key(folder):
    path = leave(folder, b"half of it", what=UNNAMED)
    _, there, _, removed = reopened(folder, what=UNNAMED)
    assert there == 0
    assert removed == [path.name]


def test_scratch_is_unnamed(folder):
    fd = Partials(folder, print).scratch()
    os.write(fd, b"x")
    assert list(folder.iterdir()) == []
    os.close(fd)
