"""Small files are read; pipes, devices, folders and large files are rejected without blocking."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provisioner.contracts.small_file import read_small


def test_read_small_returns_content(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert read_small(tmp_path / "file", 7) == b"content"


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "large", "gone"])
def test_read_small_rejects(tmp_path, what):
    path = tmp_path / what
    words = "not a regular file"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path = Path("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "large":
        path.write_bytes(bytes(1025))
        words = "larger than 1 KiB"
    else:
        words = "No such file"
    with pytest.raises(OSError, match=words):
        read_small(path, 1024)
