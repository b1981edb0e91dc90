"""The write probe on real file systems: writable, full, read-only, without O_TMPFILE."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from provisioner.contracts.write_probe import write_probe

# Runs in its own mount namespace.
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


def test_write_probe_leaves_nothing(tmp_path):
    write_probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "words"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_write_probe_full_or_read_only(tmp_path, kind, words):
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", SCRIPT, tmp_path, kind],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == words + "\n"


def test_write_probe_without_tmpfile(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *more, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    write_probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_write_probe_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_probe(tmp_path / "gone")
