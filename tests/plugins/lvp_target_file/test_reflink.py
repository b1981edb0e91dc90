"""Tests of shared blocks on file systems that have none; ``tests/reflink`` has those on XFS and btrfs."""

import os
import threading
from pathlib import Path

import pytest

from lvp_target_file import FileCloneTarget, FileSettings, make_file_target, reflink
from lvp_target_file.holders import held
from provisioner.contracts import MIB, BackEndContext
from provisioner.contracts.errors import TargetUnavailableError
from provisioner.contracts.testing import a_request


def make_target(folder, **options):
    return make_file_target(FileSettings(str(folder), **options), BackEndContext("images", folder / ".lvp"))


def test_own_bytes_are_those_of_data(tmp_path):
    """A hole takes none."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        os.pwrite(file.fileno(), b"x" * MIB, 4 * MIB)
        os.fsync(file.fileno())
    assert reflink.own_bytes(path) == MIB


def test_own_bytes_without_a_map(folder):
    """A file system in memory has no map of extents."""
    path = folder / "disk"
    path.write_bytes(b"x" * MIB)
    assert reflink.own_bytes(path) == path.stat().st_blocks * 512


def test_own_bytes_while_the_file_is_leased(tmp_path):
    """Another thread checks that a kept volume is closed: the open waits until it is done."""
    path, found = tmp_path / "disk", []
    path.write_bytes(b"x" * 4096)
    inode = path.stat().st_ino
    with held(path) as hold:
        assert hold.users == []
        thread = threading.Thread(target=lambda: found.append(reflink.own_bytes(path)))
        thread.start()
        while thread.is_alive() and not is_waited_for(inode):
            thread.join(0.001)
        assert found == []
    thread.join()
    assert found == [4096]


def is_waited_for(inode):
    lines = Path("/proc/locks").read_text().splitlines()
    return any("BREAKING" in line and f":{inode} " in line for line in lines)


async def test_target_in_memory_copies(folder):
    target = make_target(folder)
    assert isinstance(target, FileCloneTarget)
    assert "does not support reflinks" in await target.why_copy(a_request())
    assert any(finding.ok and "volumes are copied" in finding.what for finding in await target.diagnose())
    await target.aclose()


async def test_reflinks_of_a_missing_folder(tmp_path):
    with pytest.raises(TargetUnavailableError):
        await make_target(tmp_path / "not-mounted").why_copy(a_request())
    (gone,) = await make_target(tmp_path / "not-mounted").diagnose()
    assert not gone.ok
