"""What a download of an earlier life left: carried on where that is safe, gone where it is not."""

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
    """An earlier run that ended in mid-download; the file's path."""
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


def test_the_same_content_is_carried_on(folder):
    path = leave(folder, b"half of it")
    assert reopened(folder) == (path, 10, b"half of it", [])


def test_other_content_begins_anew(folder):
    path = leave(folder, b"half of it")
    other, there, _, removed = reopened(folder, what=OTHER_URL)
    assert other != path
    assert there == 0
    assert removed == []
    assert path.exists()


def test_remains_of_another_version_go(folder):
    """The server has a new version: the old one will never be asked for again."""
    path = leave(folder, b"half of it")
    _, there, _, removed = reopened(folder, what=OTHER_VERSION)
    assert there == 0
    assert removed == [path.name]
    assert not path.exists()


def test_remains_of_another_checksum_stay(folder):
    path = leave(folder, b"half of it")
    assert reopened(folder, what=Content("url", "version", "url version sha512"))[3] == []
    assert path.exists()


def test_remains_count_until_they_are_swept(folder):
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


def test_a_claimed_file_is_not_swept(folder):
    path = leave(folder, b"half of it")
    partials = Partials(folder, lambda *_: None)
    fd, *_ = partials.open(WHAT, 1000)
    os.close(fd)
    assert partials.left_over == 0
    assert partials.sweep_all() == 0
    assert path.exists()
    partials.keep(path)
    assert partials.left_over == 10


def test_a_file_that_cannot_be_removed_gives_its_space_back(folder):
    """And the next start does not take it for one to resume."""
    partials = Partials(folder, lambda *_: None)
    fd, path, _ = partials.open(WHAT, 1000)
    os.write(fd, b"half of it")
    os.close(fd)
    with append_only(folder), pytest.raises(CacheError):
        partials.remove(path)
    assert path.stat().st_size == 0
    assert reopened(folder)[3] == [path.name]


def test_a_file_that_cannot_be_resumed(folder):
    path = leave(folder, b"half of it")
    with immutable(path):
        other, there, *_ = reopened(folder)
    assert (there, path.exists()) == (0, True)
    assert other != path


def test_remains_that_cannot_be_removed(folder):
    """They do not keep the cache from starting, still count, and go as soon as that is possible."""
    path = leave(folder, b"half of it")
    said = []
    with immutable(path):
        partials = Partials(folder, lambda what, _name: said.append(what))
        assert partials.sweep_all() == 0
        assert partials.left_over == 10
        with pytest.raises(CacheError, match="Operation not permitted"):
            partials.remove(path)
        assert partials.left_over == 10
    assert said == ["a broken download cannot be removed (Operation not permitted)"]
    assert partials.sweep_old() == 10
    assert not path.exists()


def test_it_is_carried_on_once(folder):
    leave(folder, b"half of it")
    living = Partials(folder, print)
    first, _, there = living.open(WHAT, 1000)
    second, _, nothing = living.open(WHAT, 1000)
    assert (there, nothing) == (10, 0)
    os.close(first)
    os.close(second)


def test_what_is_longer_than_the_image_begins_anew(folder):
    leave(folder, b"more than there should be")
    _, there, content, _ = reopened(folder, size=5)
    assert (there, content) == (0, b"")


def test_after_a_power_cut_nothing_is_trusted(folder, monkeypatch, tmp_path):
    path = leave(folder, b"half of it")
    boot = tmp_path / "boot_id"
    boot.write_text("another1-boot\n")
    monkeypatch.setattr(partials, "_BOOT_ID", boot)
    _, there, _, removed = reopened(folder)
    assert there == 0
    assert removed == [path.name]
    assert not path.exists()


def test_what_nobody_came_back_for_goes(folder):
    path = leave(folder, b"half of it")
    old = time.time() - partials.MAX_AGE - 1
    os.utime(path, (old, old))
    assert reopened(folder)[3] == [path.name]


def test_content_that_nothing_names_is_never_carried_on(folder):
    path = leave(folder, b"half of it", what=UNNAMED)
    _, there, _, removed = reopened(folder, what=UNNAMED)
    assert there == 0
    assert removed == [path.name]


def test_a_scratch_file_has_no_name(folder):
    fd = Partials(folder, print).scratch()
    os.write(fd, b"x")
    assert list(folder.iterdir()) == []
    os.close(fd)
