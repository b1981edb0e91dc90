"""The write probe on real file systems: whole, full, read-only, without nameless files."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from provisioner.contracts.write_probe import write_probe

# In a mount namespace of its own.
SCRIPT = """
import subprocess, sys
from pathlib import Path
from provisioner.contracts.write_probe import write_probe
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
write_probe(folder)
if sys.argv[2] == "full":
    (folder / "filler").write_bytes(bytes(64 * 1024))
else:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
try:
    write_probe(folder)
except OSError as error:
    print(error.strerror)
"""


def test_nothing_is_left_behind(tmp_path):
    write_probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "words"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_file_system_that_takes_nothing(tmp_path, kind, words):
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", SCRIPT, tmp_path, kind],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == words + "\n"


def test_without_nameless_files(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *more, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    write_probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_probe(tmp_path / "gone")
