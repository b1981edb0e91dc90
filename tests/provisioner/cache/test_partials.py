"""What a download of an earlier life left: carried on where that is safe, gone where it is not."""

import os
import time

import pytest

from provisioner.cache import partials
from provisioner.cache.partials import Partials


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "partial"


def leave(folder, content, what="url version checksum"):
    """An earlier life that ended in mid-download; the file's path."""
    fd, path, there = Partials(folder, print).open(what, 1000)
    assert there == 0
    os.write(fd, content)
    os.close(fd)
    return path


def reopened(folder, what="url version checksum", size=1000):
    removed = []
    fd, path, there = Partials(folder, removed.append).open(what, size)
    content = os.pread(fd, 10_000, 0)
    os.close(fd)
    return path, there, content, removed


def test_the_same_content_is_carried_on(folder):
    path = leave(folder, b"half of it")
    assert reopened(folder) == (path, 10, b"half of it", [])


def test_other_content_begins_anew(folder):
    path = leave(folder, b"half of it")
    other, there, *_ = reopened(folder, what="url another-version checksum")
    assert other != path
    assert there == 0


def test_it_is_carried_on_once(folder):
    leave(folder, b"half of it")
    living = Partials(folder, print)
    first, _, there = living.open("url version checksum", 1000)
    second, _, nothing = living.open("url version checksum", 1000)
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
    path = leave(folder, b"half of it", what=None)
    _, there, _, removed = reopened(folder, what=None)
    assert there == 0
    assert removed == [path.name]


def test_a_scratch_file_has_no_name(folder):
    fd = Partials(folder, print).scratch()
    os.write(fd, b"x")
    assert list(folder.iterdir()) == []
    os.close(fd)
